"""Which sample of which stream every slot of every step is: `slots` decides the stream, `order` the sample.

The stages of a config and the sizes of its streams come in; a `Schedule` in integers, a `RunOrder` in closed form
and the manifest go out, and the samples of a manifest as arrays (`reader`). `slots` and `order` are arithmetic alone:
they may not know files, stores or errors of input.
"""
