"""Text as a model sees it: sentence pairs as text, token ids, samples of one width.

Texts come in; prompts (`pairs`), ids (`tokenizers`) and packed samples (`packing`) go out. It may not know where
texts come from or where samples are written.
"""
