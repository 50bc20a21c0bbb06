"""CPU time of turning records into ids, for one or more source trees in alternation.

    python benchmarks/tokenise.py --data dolly_15k.jsonl --tokenizers gpt2,qwen2.5 --templates plain,alpaca,chat.jinja
    python benchmarks/tokenise.py ... --sources ../old/src,src

Records are made before the clock starts; they are encoded in windows as the planner does. Each turn runs every source
tree once, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import islice, product
from pathlib import Path

ROOT = Path(__file__).parents[1]


def measure(data: str, count: int, tokenizers: list[str], templates: list[str]) -> list[float]:
    """Return the seconds of CPU time of each pair, for the source tree that Python imports."""
    from transformers import AutoTokenizer

    from tithe.data.render import RenderSettings, make_renderer
    from tithe.planner import windows
    from tithe.records import Example, Message

    examples = []
    with Path(data).open(encoding="utf-8") as lines:
        for row, line in enumerate(islice(lines, count)):
            read = json.loads(line)
            asked, given = read["instruction"], read.get("input", "")
            said = Message("user", f"{asked}\n\n{given}" if given else asked)
            examples.append(Example(str(row), row, 1, (said,), Message("assistant", read["output"]), asked, given))
    seconds = []
    for tokenizer, template in product(tokenizers, templates):
        renderer = make_renderer(AutoTokenizer.from_pretrained(tokenizer), RenderSettings(template=template))
        renderer.encode(examples[:50])
        start = time.process_time()
        for window in windows(iter(examples)):
            renderer.encode(window)
        seconds.append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSON lines with instruction, input, output")
    parser.add_argument("--tokenizers", required=True, help="folders, commas between")
    parser.add_argument("--templates", default="plain,alpaca")
    parser.add_argument("--sources", default=str(ROOT / "src"), help="source trees, commas between")
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    tokenizers, templates = args.tokenizers.split(","), args.templates.split(",")
    if args.one:
        print(json.dumps(measure(args.data, args.records, tokenizers, templates)))
        return
    sources = args.sources.split(",")
    turns: dict[str, list[list[float]]] = {source: [] for source in sources}
    for _, source in product(range(args.turns), sources):
        command = [sys.executable, __file__, *sys.argv[1:], "--one"]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": source}, stdout=subprocess.PIPE, check=True)
        turns[source].append(json.loads(done.stdout))
    print("| tokenizer | template |" + "".join(f" {source} |" for source in sources) + " last by first |")
    for i, (tokenizer, template) in enumerate(product(tokenizers, templates)):
        medians = [statistics.median(turn[i] for turn in each) for each in turns.values()]
        cells = [Path(tokenizer).name, Path(template).stem, *(f"{one:.2f} s" for one in medians)]
        print("| " + " | ".join([*cells, f"{medians[-1] / medians[0]:.2f}"]) + " |")


if __name__ == "__main__":
    main()
