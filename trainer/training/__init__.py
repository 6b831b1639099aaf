"""One run of training: `start` looks at everything, `session` runs Composer's Trainer from where the run stands.

A config, a manifest and a run folder come in; checkpoints, a step log and a trained model go out. It uses every
other package of the trainer but evaluation and reporting, and may not know those.
"""
