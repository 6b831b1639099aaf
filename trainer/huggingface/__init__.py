"""A checkpoint as a Hugging Face folder: weights, config, generation settings and a tokenizer with equal ids.

A checkpoint and the tokenizer of its training come in; a folder that transformers' default classes load goes out.
It may not know evaluation.
"""
