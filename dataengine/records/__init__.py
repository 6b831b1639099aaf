"""Documents and sentence pairs from files of any usual format, local or remote.

Input: file patterns. Output: parts to read (`parts`), and batches of records with reasons for the unusable ones
(`read`). A new format is one module here and one row of the table in `formats`. This package does not know streams,
rules or tokenizers.
"""
