"""What unknown files hold, and a first experiment on them.

Paths go in; samples of their files (`samples`), the kind, keys and languages of each (`contents`, `names`), streams and
evaluation sets (`streams`), the cost of a tokenizer on them (`tokenizer`) and an experiment's YAML (`experiment`) come
out. A bounded part of each file is read. It may not know commands or builds.
"""
