"""Text as a model sees it: sentence pairs as text, token ids, samples of equal length.

Input: texts. Output: prompts (`pairs`), ids (`tokenizers`) and packed samples (`packing`). This package does not know
where texts come from or where samples are written.
"""
