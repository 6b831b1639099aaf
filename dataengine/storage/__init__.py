"""Files and folders that are published whole or not at all, on local disk or in an object store.

Names and bytes come in and go out, by one interface (`store`) with two implementations (`local`, `s3`); `open`
chooses, and `retry` says what is tried again. The package may not know what the files mean.
"""
