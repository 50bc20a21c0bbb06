"""Train the bundled model from nothing: tokenizer, token streams, training, evaluation, export.

The four steps share one working folder, and each can be repeated alone:

    python training/pocket.py prepare  --corpus corpus.jsonl.xz --work work/
    torchrun --nproc_per_node=2 training/pocket.py train --work work/ --minutes 90
    python training/pocket.py evaluate --work work/ --dolly dolly.jsonl
    python training/pocket.py export   --work work/ --out src/tithe/pocket/model

The corpus is JSON lines, each `{source, text}` or `{source, instruction, input, output}`. One process of
one thread per core is the fastest way on a CPU; on a GPU run one process per GPU. The learning-rate
schedule is a function of the share of `--minutes` used, so a slow machine ends its schedule too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

BOS, END, PAD, SYSTEM, USER, ASSISTANT = range(6)
SPECIALS = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}{}\n\n### Response:"
)
# Shares of the training windows: instruction data and textbooks get more than their share of the bytes, but
# no source is read more than about five times in 100M tokens.
WEIGHTS = {
    "t0_p3": 0.3,
    "superni_15tasks": 0.1,
    "gpteacher_toolformer": 0.03,
    "gpteacher_codegen": 0.035,
    "gpteacher_roleplay": 0.02,
    "openstax": 0.055,
    "peps": 0.1,
    "english_novels": 0.21,
    "eltec_eng": 0.15,
}
CONTEXT = 1024
HELD_OUT_BYTES = 300_000


def read_corpus(path: Path) -> Iterator[dict[str, str]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def bucket(text: str) -> int:
    """A stable number in [0, 1000) of a text, to split and to choose renderings without a seed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little") % 1000


def held_out(record: dict[str, str]) -> bool:
    """Whether a document is for evaluation; instruction records are split by their input, which tasks share."""
    if "text" in record:
        return bucket(record["text"][:200]) < 30
    return bucket(record["input"].strip() or record["instruction"]) < 12


def question(record: dict[str, str]) -> str:
    return record["instruction"] + ("\n\n" + record["input"] if record["input"] else "")


def pieces(record: dict[str, str]) -> list[int | str]:
    """A document as special ids and texts; instruction records are shown in one of three dresses."""
    if "text" in record:
        return [BOS, record["text"].lstrip("\ufeff"), END]
    dress = bucket(record["output"] + record["instruction"])
    if dress < 500:
        return [BOS, USER, "\n" + question(record), END, "\n", ASSISTANT, "\n", record["output"], END, "\n"]
    if dress < 900:
        paired = ", paired with an input that provides further context" if record["input"] else ""
        shown = f"\n\n### Input:\n{record['input']}" if record["input"] else ""
        return [BOS, ALPACA.format(paired, record["instruction"], shown), record["output"], END]
    return [BOS, question(record) + "\n", record["output"], END]


def prepare(args: argparse.Namespace) -> None:
    """Train the tokenizer, write one uint16 token stream per source and the held-out documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    train: dict[str, list[dict[str, str]]] = {}
    kept: dict[str, list[dict[str, str]]] = {}
    size: dict[str, int] = {}
    seen: set[str] = set()
    for record in read_corpus(args.corpus):
        source = record["source"]
        text = record.get("text") or question(record) + record["output"]
        if text in seen:
            continue
        seen.add(text)
        if held_out(record):
            if size.get(source, 0) < HELD_OUT_BYTES:
                if "text" in record:  # a novel is longer than the sample wants
                    record["text"] = record["text"].lstrip("\ufeff")[:HELD_OUT_BYTES]
                kept.setdefault(source, []).append(record)
                size[source] = size.get(source, 0) + len(text.encode())
        else:
            train.setdefault(source, []).append(record)

    def sample() -> Iterator[str]:  # about 40 MB, by weight
        for source, share in WEIGHTS.items():
            budget = int(40e6 * share)
            rng = np.random.default_rng(0)
            order = rng.permutation(len(train[source]))
            for i in order:
                record = train[source][i]
                text = record.get("text") or question(record) + "\n" + record["output"]
                if "text" in record:
                    start = int(rng.integers(max(1, len(text) - 50_000)))
                    text = text[start : start + 50_000]
                yield text
                budget -= len(text)
                if budget < 0:
                    break

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # digits one by one, then GPT-2's own rule
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample(),
        trainers.BpeTrainer(
            vocab_size=args.vocab,
            special_tokens=SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=3,
            show_progress=False,
        ),
    )
    tokenizer.save(str(work / "tokenizer.json"))
    for source, records in sorted(train.items()):
        documents = [pieces(record) for record in records]
        texts = [piece for document in documents for piece in document if isinstance(piece, str)]
        encoded = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        ids = [[piece] if isinstance(piece, int) else next(encoded).ids for document in documents for piece in document]
        stream = np.concatenate([np.asarray(part, dtype=np.uint16) for part in ids])
        np.save(work / f"{source}.npy", stream)
        print(f"{source}: {len(records):,} documents, {len(stream):,} tokens", flush=True)
    (work / "held_out.json").write_text(json.dumps(kept), encoding="utf-8")


def build(args: argparse.Namespace) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // 64,
        num_key_value_heads=args.hidden // 64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=END,
        pad_token_id=PAD,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():  # residual branches start small
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.02 / math.sqrt(2 * args.layers))
    return model


def windows(work: Path, seed: int, length: int) -> Iterator[np.ndarray]:
    """Endless windows of `length` + 1 tokens; a document's end and the next one's start may share one."""
    rng = np.random.default_rng(seed)
    streams = [np.load(work / f"{source}.npy", mmap_mode="r") for source in WEIGHTS]
    shares = np.asarray(list(WEIGHTS.values()))
    while True:
        stream = streams[rng.choice(len(streams), p=shares / shares.sum())]
        start = int(rng.integers(len(stream) - length - 1))
        yield stream[start : start + length + 1].astype(np.int64)


def schedule(progress: float) -> float:
    """Warm up over 2 %, hold, fall linearly to zero over the last 45 %."""
    return min(1.0, progress / 0.02) * min(1.0, (1.0 - progress) / 0.45)


def train(args: argparse.Namespace) -> None:
    import torch.distributed as dist

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if not cuda:
        torch.set_num_threads(args.threads)
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    model = build(args).to(device)
    backbone, embedding = model.model, model.lm_head.weight
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimisers = [
        torch.optim.Muon(matrices, lr=args.lr_matrices, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(others, lr=args.lr_others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    base = [args.lr_matrices, args.lr_others]
    checkpoint = args.work / "checkpoint.pt"
    step, used, tokens = 0, 0.0, 0
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, used, tokens = state["step"], state["used"], state["tokens"]

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        inputs, targets = batch[:, :-1], batch[:, 1:]
        hidden = backbone(input_ids=inputs, use_cache=False).last_hidden_state
        total = hidden.new_zeros((), dtype=torch.float32)
        for h, t in zip(hidden.flatten(0, 1).split(4096), targets.flatten().split(4096), strict=True):
            total = total + torch.nn.functional.cross_entropy((h @ embedding.t()).float(), t, reduction="sum")
        return total / targets.numel()

    compute = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    per_rank = args.batch // world // args.accumulate
    # Half-length windows for most of the run: attention is the dearest part of a small model on a CPU.
    short = windows(args.work, 1000 * step + rank, CONTEXT // 2)
    full = windows(args.work, 1000 * step + 500 + rank, CONTEXT)
    parameters = [p for p in model.parameters()]
    began, shown, mean = time.time(), 0.0, None
    log = (args.work / "log.jsonl").open("a") if rank == 0 else None
    while True:
        clock = torch.tensor(used + time.time() - began, dtype=torch.float64)
        if world > 1:
            clock = clock.to(device)
            dist.broadcast(clock, 0)
        progress = float(clock) / (args.minutes * 60)
        if progress >= 1:
            break
        factor = schedule(progress)
        for optimiser, lr in zip(optimisers, base, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = lr * max(factor, 1e-3)
        loss = torch.zeros((), device=device)
        for _ in range(args.accumulate):
            source, rows = (short, 2 * per_rank) if progress < args.short_until else (full, per_rank)
            batch = torch.from_numpy(np.stack([next(source) for _ in range(rows)])).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                part = compute(batch) / args.accumulate
            part.backward()
            loss += part.detach()
        if world > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters] + [loss.reshape(1)])
            dist.all_reduce(flat)
            flat /= world
            loss = flat[-1]
            for p, grad in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
                p.grad.copy_(grad.view_as(p))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
        step, tokens = step + 1, tokens + args.batch * CONTEXT
        mean = float(loss) if mean is None else 0.98 * mean + 0.02 * float(loss)
        if rank == 0 and step % 20 == 0:
            seconds = used + time.time() - began
            line = {"step": step, "tokens": tokens, "seconds": round(seconds, 1), "loss": round(mean, 4), "lr": factor}
            log.write(json.dumps(line) + "\n")
            log.flush()
            print(line, flush=True)
        if rank == 0 and time.time() - shown > 300:
            shown = time.time()
            save(checkpoint, model, optimisers, step, used + time.time() - began, tokens, args)
    if rank == 0:
        save(checkpoint, model, optimisers, step, args.minutes * 60, tokens, args)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def save(
    path: Path,
    model: torch.nn.Module,
    optimisers: list[torch.optim.Optimizer],
    step: int,
    used: float,
    tokens: int,
    args: argparse.Namespace,
) -> None:
    state = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "step": step,
        "used": used,
        "tokens": tokens,
        "settings": {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | bool)},
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


class FiveGram:
    """Interpolated Kneser-Ney 5-gram (one discount per order) over token ids, queried for one text at a time."""

    order = 5

    def __init__(self, stream: np.ndarray, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        rng = np.random.default_rng(0)
        self.mix = rng.integers(1, 2**62, size=(self.order, vocabulary), dtype=np.uint64) | np.uint64(1)
        self.grams: list[tuple[np.ndarray, np.ndarray]] = []  # per n: sorted keys, counts
        self.contexts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # keys, totals, distinct successors
        self.discounts: list[float] = []
        for n in range(self.order, 0, -1):
            counts = self.count(stream, n)
            self.grams.insert(0, counts[:2])
            self.contexts.insert(0, counts[2:])
            once, twice = int((counts[1] == 1).sum()), int((counts[1] == 2).sum())
            self.discounts.insert(0, once / (once + 2 * twice) if once else 0.5)

    def keys(self, stream: np.ndarray, n: int) -> np.ndarray:
        """64-bit keys of all n-grams, the word at place j counted back from the newest: (len - n + 1,)."""
        length = len(stream) - n + 1
        return np.bitwise_xor.reduce([self.mix[j][stream[n - 1 - j :][:length]] for j in range(n)])

    def count(self, stream: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
        if n == self.order:  # highest order: raw counts
            words, context = self.keys(stream, n), self.context_keys(stream, n)
            order = np.argsort(words, kind="stable")
            keys, first, counts = np.unique(words[order], return_index=True, return_counts=True)
            context = context[order][first]
        else:  # lower orders: in how many distinct left contexts the n-gram stands
            longer = self.keys(stream, n + 1)
            _, first = np.unique(longer, return_index=True)
            words, parents = self.keys(stream, n)[1:][first], self.context_keys(stream, n)[1:][first]
            keys, index, counts = np.unique(words, return_index=True, return_counts=True)
            context = parents[index]
        places, inverse = np.unique(context, return_inverse=True)
        totals = np.bincount(inverse, weights=counts)
        return keys, counts, places, totals, np.bincount(inverse)

    def context_keys(self, stream: np.ndarray, n: int) -> np.ndarray:
        length = len(stream) - n + 1
        if n == 1:
            return np.zeros(length, dtype=np.uint64)
        return np.bitwise_xor.reduce([self.mix[j][stream[n - 1 - j :][:length]] for j in range(1, n)])

    def bits(self, ids: np.ndarray) -> np.ndarray:
        """-log2 p of each token but the first: (len - 1,)."""
        probability = np.full(len(ids), 1 / self.vocabulary)
        for n in range(1, self.order + 1):
            if len(ids) < n:
                break
            (keys, counts), (places, totals, distinct) = self.grams[n - 1], self.contexts[n - 1]
            count = look_up(keys, counts, self.keys(ids, n))
            context = self.context_keys(ids, n)
            total, kinds = look_up(places, totals, context), look_up(places, distinct, context)
            lower, d = probability[n - 1 :], self.discounts[n - 1]
            seen = total > 0
            safe = np.where(seen, total, 1)
            mixed = (np.maximum(count - d, 0) + d * kinds * lower) / safe
            probability[n - 1 :] = np.where(seen, mixed, lower)
        return -np.log2(probability[1:])


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


class Seen:
    """Which parts of a text the training text already holds, by their runs of 12 tokens.

    Task collections show one passage under many prompts, and one prompt with many passages, so that setting records
    aside does not set all of their text aside.
    """

    run = 12

    def __init__(self, stream: np.ndarray, vocabulary: int) -> None:
        rng = np.random.default_rng(1)
        self.mix = rng.integers(1, 2**62, size=(self.run, vocabulary), dtype=np.uint64) | np.uint64(1)
        self.known = np.unique(self.keys(stream))

    def keys(self, ids: np.ndarray) -> np.ndarray:
        length = len(ids) - self.run + 1
        return np.bitwise_xor.reduce([self.mix[j][ids[j : j + length]] for j in range(self.run)])

    def new(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens stand in no run that training has: (tokens,) bool."""
        new = np.ones(len(ids), dtype=bool)
        if len(ids) >= self.run:
            keys = self.keys(ids)
            at = np.minimum(np.searchsorted(self.known, keys), len(self.known) - 1)
            for start in np.flatnonzero(self.known[at] == keys):
                new[start : start + self.run] = False
        return new


def model_bits(model: torch.nn.Module, ids: list[int], device: torch.device) -> np.ndarray:
    """-log2 p of each token but the first, with at least half a context of history: (len - 1,)."""
    out: list[torch.Tensor] = []
    stride = CONTEXT // 2
    for start in range(0, max(1, len(ids) - 1), stride):
        window = torch.tensor([ids[start : start + CONTEXT]], device=device)
        if window.shape[1] < 2:
            break
        with torch.inference_mode():
            logits = model(input_ids=window).logits[0, :-1].float()
        bits = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none") / math.log(2)
        out.append(bits if start == 0 else bits[stride - 1 :])
        if start + CONTEXT >= len(ids):
            break
    return torch.cat(out).double().cpu().numpy()


def evaluate(args: argparse.Namespace) -> None:
    """Held-out bits per byte of the model, of a 5-gram on the same training streams, and of xz -9e."""
    from tokenizers import Tokenizer

    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    state = torch.load(args.work / "checkpoint.pt", map_location="cpu", weights_only=True)
    settings = argparse.Namespace(**{**vars(args), **{k: state["settings"][k] for k in SHAPE}})
    model = build(settings)
    model.load_state_dict(state["model"])
    model = model.to(device, torch.bfloat16).eval()  # as shipped
    if device.type == "cpu":
        model = model.float()  # the shipped values, computed exactly
    stream = np.concatenate([np.load(args.work / f"{source}.npy") for source in WEIGHTS])
    ngram, seen = FiveGram(stream, settings.vocab), Seen(stream, settings.vocab)
    suites: dict[str, list[tuple[str, str]]] = {}  # (context, text that is scored)
    for source, records in json.loads((args.work / "held_out.json").read_text()).items():
        suites[source] = [("", r["text"]) if "text" in r else ("", question(r) + "\n" + r["output"]) for r in records]
    if args.dolly:
        rows = [json.loads(line) for line in args.dolly.read_text(encoding="utf-8").splitlines()]
        suites["dolly responses"] = [(question(r), r["output"]) for r in rows[:: max(1, len(rows) // 500)]]
    report = {}
    for name, pairs in suites.items():
        size, left_out = 0, 0
        total = {"model": 0.0, "five_gram": 0.0}
        for context, text in pairs:
            head = [BOS]
            if context:
                head += [USER, *tokenizer.encode("\n" + context, add_special_tokens=False).ids, END]
                head += [*tokenizer.encode("\n").ids, ASSISTANT, *tokenizer.encode("\n").ids]
            head = head[-CONTEXT // 2 :] if len(head) > CONTEXT // 2 else head
            encoded = tokenizer.encode(text, add_special_tokens=False)
            ids, new = head + encoded.ids, seen.new(np.asarray(encoded.ids))
            lengths = np.asarray([len(token) for token in encoded.tokens])  # byte-level: one character a byte
            size, left_out = size + int(lengths[new].sum()), left_out + int(lengths[~new].sum())
            total["model"] += model_bits(model, ids, device)[len(head) - 1 :][new].sum()
            total["five_gram"] += ngram.bits(np.asarray(ids))[len(head) - 1 :][new].sum()
        joined = "\n".join(text for _, text in pairs).encode()
        packed = len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) * 8 / len(joined)
        report[name] = {
            "documents": len(pairs),
            "bytes": size,
            "bytes_left_out_as_seen": left_out,
            "model": round(float(total["model"]) / size, 4),
            "five_gram": round(float(total["five_gram"]) / size, 4),
            "xz": round(packed, 4),
        }
        print(name, report[name], flush=True)
    result = {"bits_per_byte": report, "steps": state["step"], "tokens": state["tokens"]}
    result |= {"machine": machine(device), "torch": torch.__version__}
    result |= {"minutes": round(state["used"] / 60, 1), "settings": {k: state["settings"][k] for k in SETTINGS}}
    (args.work / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def machine(device: torch.device) -> str:
    """What the evaluation, and here the training too, ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def export(args: argparse.Namespace) -> None:
    """Write config, bf16 safetensors, tokenizer and chat template as transformers reads them."""
    from transformers import PreTrainedTokenizerFast

    state = torch.load(args.work / "checkpoint.pt", map_location="cpu", weights_only=True)
    settings = argparse.Namespace(**{**vars(args), **{k: state["settings"][k] for k in SHAPE}})
    model = build(settings)
    model.load_state_dict(state["model"])
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(args.work / "tokenizer.json"),
        bos_token=SPECIALS[BOS],
        eos_token=SPECIALS[END],
        pad_token=SPECIALS[PAD],
        additional_special_tokens=SPECIALS[SYSTEM:],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(args.out)
    parameters = sum(p.numel() for p in model.parameters())
    (args.out / "README.md").write_text(card(args.work, settings, parameters), encoding="utf-8")
    print(f"{parameters:,} parameters -> {args.out}", file=sys.stderr)


SOURCES = {
    "english_novels": ("English novels", "public domain"),
    "eltec_eng": ("ELTeC, English collection", "CC BY 4.0"),
    "peps": ("Python Enhancement Proposals", "public domain, CC0"),
    "openstax": ("OpenStax textbooks", "CC BY 4.0"),
    "t0_p3": ("T0's mixture of P3", "Apache-2.0"),
    "superni_15tasks": ("Super-NaturalInstructions, 15 tasks", "Apache-2.0"),
    "gpteacher_toolformer": ("GPTeacher toolformer", "MIT"),
    "gpteacher_codegen": ("GPTeacher code generation", "MIT"),
    "gpteacher_roleplay": ("GPTeacher role play", "MIT"),
}


def card(work: Path, settings: argparse.Namespace, parameters: int) -> str:
    """The model card: every number in it comes from the training log and `evaluation.json`."""
    result = json.loads((work / "evaluation.json").read_text())
    rows = []
    for source, bits in result["bits_per_byte"].items():
        share = bits["bytes_left_out_as_seen"] / (bits["bytes"] + bits["bytes_left_out_as_seen"])
        numbers = " | ".join(f"{bits[name]:.3f}" for name in ("model", "five_gram", "xz"))
        rows.append(f"| {source} | {bits['documents']:,} | {bits['bytes']:,} | {share:.0%} | {numbers} |")
    sources = [
        f"| `{source}` | {SOURCES[source][0]} | {SOURCES[source][1]} | {100 * share:g} % |"
        for source, share in WEIGHTS.items()
    ]
    return CARD.format(
        parameters=parameters / 1e6,
        layers=settings.layers,
        hidden=settings.hidden,
        intermediate=settings.intermediate,
        heads=settings.hidden // 64,
        vocab=settings.vocab,
        context=CONTEXT,
        steps=result["steps"],
        tokens=result["tokens"] / 1e6,
        minutes=result["minutes"],
        batch=result["settings"]["batch"] * CONTEXT,
        machine=result["machine"],
        torch=result["torch"],
        sources="\n".join(sources),
        rows="\n".join(rows),
        remark=remark(result["bits_per_byte"]),
        history=(work / "history.txt").read_text() if (work / "history.txt").exists() else "",
    )


def remark(report: dict[str, dict[str, float]]) -> str:
    """Name the sources of which too little is new for their row to say anything."""
    share = {
        source: bits["bytes_left_out_as_seen"] / (bits["bytes"] + bits["bytes_left_out_as_seen"])
        for source, bits in report.items()
    }
    known = [source for source, left_out in share.items() if left_out > 0.9]
    if not known:
        return ""
    return (
        f"\nOf {', '.join(known)} nearly everything also stands in the training text. The bytes that are left are\n"
        "fragments within known passages, where an n-gram that remembers them is at its best: that row measures\n"
        "memory, and says nothing about held-out text.\n"
    )


CARD = """---
license: apache-2.0
language: en
library_name: transformers
---
# pocket

A language model of {parameters:.1f}M parameters that comes with tithe, for trying it out. It is far too small to judge
data for a model that anybody would use: score with the model that you train, or with one near to it.

- Llama architecture: {layers} layers of width {hidden}, {heads} heads, feed-forward {intermediate}, tied embeddings
- its own byte-level BPE of {vocab:,} tokens, digits one by one; context {context:,}; bf16 safetensors
- chat template with `<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>`; it has also seen Alpaca's template

## Training

From random weights, by `training/pocket.py` (in the repository): {steps:,} steps of {batch:,} tokens, {tokens:.1f}M
tokens in all, in {minutes:.0f} minutes on {machine}
that other work shared (torch {torch}). Muon for the matrices, AdamW for the rest; half-length windows for the first
70 % of the time.
{history}
| source | what | licence | share of the windows |
|---|---|---|---|
{sources}

None of it is Dolly, Alpaca or an evaluation set.

## Held-out bits per byte

Documents that were set aside before training. Task collections show one passage under many prompts and one prompt
with many passages, so what stands in a run of 12 tokens that the training text also has is read but not counted: the
share left out. The 5-gram is interpolated Kneser-Ney over the same tokens and the same training text, and counts the
same bytes; `xz -9e` packs the whole held-out text of the source. Lower is better. Dolly responses are read after their
prompts, by the model and the 5-gram.

| text | documents | bytes | left out | pocket | 5-gram | xz |
|---|---|---|---|---|---|---|
{rows}
{remark}
## Limits

It knows little, believes anything, and was trained on novels of the nineteenth century among other things. It writes
no useful answers. Its likelihoods rank fluent above broken English, and that is all they are good for.
"""


SHAPE = ["vocab", "hidden", "intermediate", "layers", "seed"]
SETTINGS = [*SHAPE, "batch", "short_until", "lr_matrices", "lr_others", "minutes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", "train", "evaluate", "export"])
    parser.add_argument("--work", type=Path, required=True, help="folder of streams, checkpoint, log and results")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--dolly", type=Path, help="instruction records whose responses are scored too")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8, help="full-length windows a step, over all processes")
    parser.add_argument("--short-until", type=float, default=0.7, help="share of the run read in half-length windows")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--threads", type=int, default=1, help="threads a process on a CPU")
    parser.add_argument("--lr-matrices", type=float, default=0.02)
    parser.add_argument("--lr-others", type=float, default=0.004)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    {"prepare": prepare, "train": train, "evaluate": evaluate, "export": export}[args.step](args)


if __name__ == "__main__":
    main()
