"""From real text to a trained, killed, resumed and evaluated model, with the commands that a user would type."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from dataengine.config.load import load_config
from dataengine.schedule.manifest import read_manifest
from trainer.run.log_csv import read_log

CONFIG = "yamls/mini/uni_en_zh.yaml"
KEPT = "docs/outputs/demo.txt"  # the summary as the documents show it
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = Path(sys.executable).parent


def main() -> None:
    """Run the demonstration; exit with 1 if the resumed run differs from the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where runs go (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="training processes (default: %(default)s)")
    options = parser.parse_args()
    os.chdir(ROOT)
    begun = time.monotonic()
    shutil.rmtree(options.out, ignore_errors=True)
    straight, killed = options.out / "uninterrupted", options.out / "killed"
    store = f"store={options.out / 'store'}"

    heading("Build streams and manifest from real text")
    build = [str(COMMANDS / "dataengine"), "build", CONFIG, store]
    run(build)
    heading("Build again")
    run(build)

    config = load_config(CONFIG, [store])
    manifest = read_manifest(Path(config.store) / "experiments" / config.name / "manifest.json")
    steps = manifest.schedule.steps

    def train(out: Path) -> list[str]:
        launcher = [str(COMMANDS / "composer"), "-n", str(options.ranks)]
        return [*launcher, "trainer/train.py", CONFIG, store, f"out={out}"]

    heading(f"Train {steps} steps on {options.ranks} ranks, without interruption")
    run(train(straight))
    heading(f"Train once more, and kill all ranks (SIGKILL) after step {steps // 2}")
    kill_after(train(killed), killed / "log.csv", steps // 2)
    heading("The same command again: resume")
    run(train(killed))
    heading("Translate the development set with every checkpoint, and choose one")
    run([sys.executable, "trainer/evaluate.py", CONFIG, store, f"out={killed}", "--all"])
    heading("Report on both runs")
    run([sys.executable, "trainer/report.py", str(straight), str(killed), "--out", str(options.out / "report.html")])

    first, second = read_log(straight / "log.csv"), read_log(killed / "log.csv")
    equal_samples = [row["digest"] for row in first] == [row["digest"] for row in second]
    equal_losses = [row["loss"] for row in first] == [row["loss"] for row in second]
    chosen = json.loads((killed / "chosen.json").read_text())["step"]
    results = json.loads((killed / f"evaluations/step-{chosen:08d}/results.json").read_text())
    lines = ["== Summary"]
    for stream in manifest.streams:
        drawn = int(second[-1][f"samples/{stream.name}"])
        losses = [row[f"loss/{stream.name}"] for row in second if row[f"loss/{stream.name}"]]
        lines.append(
            f"stream {stream.name}: {stream.samples:,} samples built, {drawn:,} drawn "
            f"({drawn * manifest.seq_len:,} predicted tokens), final loss {float(losses[-1]):.4f}"
        )
    lines.append(f"steps {len(second)}, {len(second) * manifest.batch_size * manifest.seq_len:,} predicted tokens")
    lines.append(f"chosen checkpoint: step {chosen}, by the mean BLEU on dev")
    for entry in results["translation"]:
        bleu = entry["bleu"]
        lines.append(f"BLEU {entry['direction']} {bleu['score']:.2f}  {bleu['signature']}")
    same = "equal" if equal_samples else "DIFFERENT"
    lines += [
        f"sample digest, uninterrupted      {first[-1]['digest']}",
        f"sample digest, killed and resumed {second[-1]['digest']}  {same}",
        f"losses of all steps, bit for bit  {'equal' if equal_losses else 'DIFFERENT'}",
        f"report {options.out / 'report.html'}",
    ]
    print("", *lines, f"took {time.monotonic() - begun:.0f} s", sep="\n")
    for line in differing_lines(lines):
        print(f"not in {KEPT} (losses and BLEU depend on the machine's arithmetic): {line}")
    sys.exit(0 if equal_samples and equal_losses else 1)


def differing_lines(lines: list[str]) -> list[str]:
    """The lines of a summary that the kept one does not have."""
    kept = (ROOT / KEPT).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line not in kept]


def heading(text: str) -> None:
    """Print a heading."""
    print(f"\n== {text}", flush=True)


def run(command: list[str]) -> None:
    """Run a command, shown as a user would type it; end the demonstration if it fails."""
    show(command)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(f"this command failed with exit code {code}")


def kill_after(command: list[str], log: Path, step: int) -> None:
    """Run a command in its own process group, and kill the group when its log has reached a step."""
    show(command)
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if log.is_file() and len(read_log(log)) > step:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"killed after step {len(read_log(log)) - 1}", flush=True)
            return
        time.sleep(0.2)
    sys.exit(f"the run ended with exit code {process.returncode} before it could be killed")


def show(command: list[str]) -> None:
    """Print a command."""
    names = {str(COMMANDS / name): name for name in ("dataengine", "composer")} | {sys.executable: "python"}
    print("$ " + " ".join(names.get(word, word) for word in command), flush=True)


if __name__ == "__main__":
    main()
