# %% [markdown]
# # A plan in pictures
# Tokens drawn from each stream, the mix over steps, and the loss of a run, if there is one. Editors run the cells of
# this file as a notebook. As a program: `python examples/plots.py [CONFIG] [PICTURE]`.

# %%
import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import dataengine

words = sys.argv[1:] if "ipykernel" not in sys.modules else []
config = dataengine.load_config(*words[:1] or ["yamls/mini/uni_en_zh.yaml"])
picture = Path(*words[1:2] or ["runs/examples/plots.png"])
manifest = dataengine.plan(config)
schedule = manifest.schedule
figure, (drawn, mix, loss) = plt.subplots(3, 1, figsize=(9, 9), sharex=True, layout="constrained")

# %% Tokens drawn from each stream: `cursors` is exact at every step, so 200 points are enough
steps = np.unique(np.linspace(0, schedule.steps, 200).astype(int))
cursors = [schedule.cursors(int(step)) for step in steps]
for name in schedule.streams:
    drawn.plot(steps, [cursor[name] * manifest.seq_len for cursor in cursors], label=name)
drawn.set(title=f"{manifest.name}: plan {manifest.plan_id[:12]}", ylabel="tokens drawn")
drawn.legend(frameon=False)

# %% The mix: each stream's share of the samples between two points
samples = np.array([[cursor[name] for name in schedule.streams] for cursor in cursors])
shares = np.diff(samples, axis=0) / (np.diff(steps)[:, None] * manifest.batch_size)
mix.stackplot(steps[:-1], shares.T, labels=schedule.streams, step="post")
mix.set(ylabel="share of the batch", ylim=(0, 1))

# %% The loss of a run, and whether it was trained on this plan
log = Path(config.out, "log.csv")
if log.is_file():
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    loss.plot([int(row["step"]) for row in rows], [float(row["loss"]) for row in rows])
    proven = dataengine.audit(manifest, log).different_at is None
    loss.set(title="trained on this plan" if proven else "NOT trained on this plan", ylabel="loss")
else:
    loss.text(0.5, 0.5, f"no {log} yet", ha="center", transform=loss.transAxes)
loss.set(xlabel="step")

# %%
picture.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(picture, dpi=120)
print(f"picture {picture}")
