"""Tokenizers: reading tokenizer files, and a faster library that gives the same ids.

Input: the path of a tokenizer (`load`). Output: an object that encodes and decodes batches of texts. Control tokens
written in a text stay text. This package does not know streams or samples.
"""
