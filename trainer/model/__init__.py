"""The decoder, its loss and optimizer, and the memory of a step.

Input: the `model` section of a config. Output: modules, losses and figures. Only `composer_model` imports Composer.
No module here knows streams or checkpoint folders.
"""
