"""Rules for pairs and documents, as operations on columns: a batch of texts is one array of code points.

Texts and a section of a config (`settings`) come in; the number of the first rule that drops each text goes out
(`pairs`, `documents`). Rules are pure: they may not know files, records or errors.
"""
