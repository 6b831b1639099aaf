"""A checkpoint as a Hugging Face folder: weights, config, generation settings and a tokenizer with equal ids.

Input: a checkpoint and its tokenizer. Output: a folder that the default classes of transformers load. No module here
knows evaluation.
"""
