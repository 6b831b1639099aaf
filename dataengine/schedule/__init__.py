"""Which sample of which stream every slot of every step is: `slots` decides the stream, `order` the sample.

Input: the stages of a config and the sizes of its streams. Output: a `Schedule` in integers, a `RunOrder` in closed
form, the manifest, and its samples as arrays (`reader`). `slots` and `order` are pure arithmetic: they must not import
files, stores or input errors.
"""
