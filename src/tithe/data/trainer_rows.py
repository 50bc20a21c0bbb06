"""Write examples as the files that ms-swift, torchtune and Unsloth read: plain messages, with what is learnt marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import OutputError
from tithe.records import Example, Message

MS_SWIFT, TORCHTUNE, UNSLOTH, MESSAGES = "ms-swift", "torchtune", "unsloth", "messages"
WEIGHT = "sample_weight"
WEIGHTED = (MS_SWIFT, MESSAGES)  # formats with a place for a weight
VERSIONS = {MS_SWIFT: "4.6", TORCHTUNE: "0.6.1", UNSLOTH: "2026.10"}  # whose readers these files are for


@dataclass
class RowsWritten:
    """What was written for a trainer.

    Args:
        path: the file.
        records: one for each response that is learnt.
        left_out: reason -> examples that the trainer cannot read.
        earlier: examples with earlier responses, which the trainer learns too.
    """

    path: Path
    records: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    earlier: int = 0


def write_rows(
    examples: Iterable[Example], to: str, path: Path, *, overwrite: bool, weights: Sequence[float] | None = None
) -> RowsWritten:
    """Write a JSON-lines file for a trainer.

    Args:
        examples: to write, in order.
        to: `ms-swift`, `torchtune` or `unsloth`; or `messages`, with a column of weights.
        path: of the file.
        overwrite: replace an existing file.
        weights: one for each example; of the trainers only ms-swift reads them.

    Raises:
        OutputError: the file cannot be written, or no example can be read by the trainer.
    """
    done = RowsWritten(path)
    with atomic(path, overwrite) as stream:
        for i, example in enumerate(examples):
            why = None if to in WEIGHTED else unreadable(example)
            if why is not None:
                done.left_out[why] += 1
                continue
            row = row_of(example, to, None if weights is None else weights[i])
            done.earlier += to == TORCHTUNE and any(message.role == "assistant" for message in example.prompt)
            done.records += 1
            stream.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        if not done.records:
            reason = next(iter(done.left_out), "there are none")
            raise OutputError(f"no example can be written for {to}: {reason}", hint="`--to messages` holds any record")
    return done


def row_of(example: Example, to: str, weight: float | None) -> dict[str, Any]:
    """Return the record of an example."""
    if to == MS_SWIFT:
        return swift_row(example, weight)
    if to != MESSAGES:
        return plain_row(example)
    said = [message.as_dict() for message in (*example.prompt, example.response)]
    tools = {"tools": list(example.tools)} if example.tools else {}
    return {"messages": said} | tools | dict(example.columns) | {WEIGHT: weight}


def swift_row(example: Example, weight: float | None) -> dict[str, Any]:
    """Return a record of ms-swift, in which only the example's response has a loss."""
    said = [turn for message in example.prompt for turn in swift_turns(message, learnt=False, weight=None)]
    said += swift_turns(example.response, learnt=True, weight=weight)
    return {"messages": said} | (
        {"tools": json.dumps(list(example.tools), ensure_ascii=False)} if example.tools else {}
    )


def swift_turns(message: Message, *, learnt: bool, weight: float | None) -> list[dict[str, Any]]:
    """Return a message as ms-swift's turns: a tool call is a turn of its own, and thinking is part of the text."""
    if message.role != "assistant":
        return [{"role": message.role, "content": message.content}]
    mark = {"loss": learnt} | ({} if weight is None else {"loss_scale": weight})
    text = message.content
    if message.reasoning is not None:
        text = f"<think>\n{message.reasoning}\n</think>\n\n{text}"
    turns = [{"role": "assistant", "content": text} | mark] if text or not message.tool_calls else []
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.tool_calls]
    return turns + [{"role": "tool_call", "content": call} | mark for call in calls]


def unreadable(example: Example) -> str | None:
    """Return why torchtune and Unsloth's templates cannot read an example; None if they can."""
    messages = (*example.prompt, example.response)
    if example.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        return "it calls tools"
    if any(message.reasoning is not None for message in messages):
        return "it has reasoning beside the content"
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        return "its turns do not alternate between user and assistant"
    return None


def plain_row(example: Example) -> dict[str, Any]:
    """Return a record of messages that have a role and a content only."""
    said = (*example.prompt, example.response)
    return {"messages": [{"role": message.role, "content": message.content} for message in said]}


def how_to_train(to: str, path: Path, *, weighted: bool = False) -> str:
    """Return what a trainer needs to read the file: a command, YAML or a program."""
    name = str(path)
    if to == MS_SWIFT:
        more = " --loss_scale default --is_binary_loss_scale false" if weighted else ""
        return f"swift sft --model MODEL --dataset {json.dumps(name)}{more}"
    if to == TORCHTUNE:
        return (
            "dataset:\n"
            "  _component_: torchtune.datasets.chat_dataset\n"
            "  source: json\n"
            f"  data_files: {json.dumps(name)}\n"
            "  split: train\n"
            "  conversation_column: messages\n"
            "  conversation_style: openai\n"
            "  train_on_input: false\n"
        )
    return _UNSLOTH.format(path=json.dumps(name))


_UNSLOTH = """\
# The two parts are those of the model's chat template; these are Llama 3's.
from unsloth import FastLanguageModel
from unsloth.chat_templates import train_on_responses_only
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

model, tokenizer = FastLanguageModel.from_pretrained("MODEL", max_seq_length=2048)
model = FastLanguageModel.get_peft_model(model)
data = load_dataset("json", data_files={path}, split="train")
data = data.map(lambda row: {{"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}})

args = SFTConfig(output_dir="out", dataset_text_field="text", max_length=2048)
trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=data, args=args)
trainer = train_on_responses_only(
    trainer,
    instruction_part="<|start_header_id|>user<|end_header_id|>\\n\\n",
    response_part="<|start_header_id|>assistant<|end_header_id|>\\n\\n",
    last_response_only=True,
)
trainer.train()
"""
