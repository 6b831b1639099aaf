"""Documents and sentence pairs from files of any usual format, local or remote.

Patterns of files come in; parts to read (`parts`) and batches of records with the reasons for the unusable ones
(`read`) go out. A new format is one module here and one row of the table in `formats`. It may not know streams, rules
or tokenizers.
"""
