"""What a model needs of a GPU: parameters, operations; and what GPUs have.

Input: the `model` section of a config and the sizes of a batch. Output: figures. Pure arithmetic: no file, no device.
"""
