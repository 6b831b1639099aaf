"""Rules for pairs and documents, as operations on columns: a batch of texts is one array of code points.

Input: texts and a section of a config (`settings`). Output: the number of the first rule that drops each text (`pairs`,
`documents`). Rules are pure: they know no files, records or errors.
"""
