"""Publish files and folders whole or not at all, on local disk or in an object store.

One interface (`store`) has two implementations (`local`, `s3`); `open` chooses between them, and `retry` defines which
errors are tried again. Names and bytes go in and out. The package must not know what the files mean.
"""
