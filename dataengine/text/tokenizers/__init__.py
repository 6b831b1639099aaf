"""Tokenizers: what a tokenizer file means, and a faster library that gives the same ids.

A tokenizer's path comes in (`load`); an object that encodes and decodes batches of texts goes out. Control tokens
written in a text stay text. It may not know streams or samples.
"""
