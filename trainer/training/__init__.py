"""One run of training: `start` checks everything, `session` runs Composer's Trainer from the run's current step.

Input: a config, a manifest and a run folder. Output: checkpoints, a step log and a trained model. Uses every other
package of the trainer except evaluation and reporting.
"""
