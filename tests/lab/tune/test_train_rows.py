"""Rows: labels stand on exactly the tokens that scoring reads, and every example is accounted for."""

import numpy as np
import pytest

from tithe.data.render import RenderSettings, make_renderer
from tithe.engine.loading import load_model
from tithe.engine.model_source import find_model, load_tokenizer
from tithe.lab.tune.train_rows import EosEnding, read_rows
from tithe.records import BadRow, Example, Message


def example(prompt, response, id_="a"):
    return Example(id_, 0, 1, (Message("user", prompt),), Message("assistant", response))


def renderer(model_dir, **settings):
    tokenizer = load_tokenizer(find_model(str(model_dir)))
    return tokenizer, make_renderer(tokenizer, RenderSettings(**{"eos": True, "max_length": 64, **settings}))


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_labels_are_the_response_with_what_ends_it(model_dir, template):
    """Read back as text, token by token: nothing of the prompt, all of the response, and the mark that stops."""
    tokenizer, made = renderer(model_dir, template=template)
    (row,) = read_rows([example("Name a colour.", "Red, green and blue.")], made).rows
    labelled = [i for i, label in enumerate(row.labels) if label != -100]
    assert [row.labels[i] for i in labelled] == [row.ids[i] for i in labelled]
    assert labelled == list(range(labelled[0], len(row.ids)))
    assert tokenizer.decode([row.ids[i] for i in labelled]) == "Red, green and blue.<|end|>"
    assert tokenizer.decode(row.ids[: labelled[0]]).endswith(("<|assistant|>\n", "### Response:"))


@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("bos", ["auto", "never"])
def test_labels_are_exactly_what_scoring_reads(model_dir, template, bos):
    """As many as the engine gives NLLs for, and the same tokens."""
    _, made = renderer(model_dir, template=template, bos=bos)
    examples = [example("Name a colour.", "Red."), example("Hi", "x", "b"), example("w " * 4, "y " * 60, "c")]
    found = read_rows(examples, made)
    model = load_model(find_model(str(model_dir)), device="cpu", dtype="fp32")
    for one, row in zip(examples, found.rows, strict=True):
        (encoded,) = made.encode([one])
        given = made.build("given", encoded)
        (nlls,) = model.nll([given])
        assert row.ids == given.ids.tolist()
        assert sum(label != -100 for label in row.labels) == len(nlls)
        assert row.labels[-len(nlls) :] == given.ids[-len(nlls) :].tolist()


def test_everything_is_counted(model_dir):
    _, made = renderer(model_dir, template="alpaca")
    long_response, long_prompt = example("Hi", "word " * 200, "b"), example("word " * 200, "x", "c")
    bad = BadRow(3, "line 4", "no output: it is missing")
    got = read_rows([example("Hi", "Yes"), long_response, long_prompt, example("Hi", "", "d"), bad], made)
    counts = got.counts()
    assert (counts["examples"], counts["trained_on"]) == (5, 2)
    assert sum(counts["left_out"].values()) == 3 and set(counts["left_out"]) == {
        "no response token left",
        "empty response",
        "no output: it is missing",
    }
    assert counts["truncated_responses"] == 1 and counts["response_tokens_cut"] > 0
    cut = got.rows[1]
    assert len(cut.ids) == 64 and cut.ids[-1] != 1, "a response that was cut must not teach to stop there"


BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
BARE += "{% if add_generation_prompt %}\nassistant: {% endif %}"


def bare_rows(model_dir, tmp_path, examples, eos="own", **settings):
    """Rows of a template that writes nothing after a response."""
    (tmp_path / "bare.jinja").write_text(BARE)
    settings = {"template": str(tmp_path / "bare.jinja"), "max_length": 64, **settings}
    tokenizer, made = renderer(model_dir, **settings)
    ending = EosEnding(
        renderer(model_dir, **settings, eos=False)[1], 1 if eos == "own" else eos, settings["max_length"]
    )
    assert tokenizer.eos_token_id == 1
    return tokenizer, read_rows(examples, made, ending)


def test_a_template_without_an_end_gets_eos(model_dir, tmp_path):
    tokenizer, found = bare_rows(
        model_dir, tmp_path, [example("Name a colour.", "Red."), example("Hi", "w " * 90, "b")]
    )
    whole, cut = found.rows
    learnt = [label for label in whole.labels if label != -100]
    assert tokenizer.decode(learnt).strip() == "Red.<|end|>" and learnt[-1] == 1
    assert cut.ids[-1] != 1 and len(cut.ids) == 64
    assert (found.ends_added, found.ends_missing) == (1, 0) == (found.counts()["ends_added"], 0)
    _, found = bare_rows(model_dir, tmp_path, [example("Name a colour.", "Red.")], max_length=len(whole.ids) - 1)
    assert (found.ends_added, found.ends_missing) == (0, 1) and found.rows[0].ids == whole.ids[:-1]
    _, found = bare_rows(model_dir, tmp_path, [example("Name a colour.", "Red.")], eos=None)
    assert (found.ends_added, found.ends_missing) == (0, 1) and found.rows[0].ids == whole.ids[:-1]
    _, found = bare_rows(model_dir, tmp_path, [example("Name a colour.", "Red.<|end|>")])
    assert (found.ends_added, found.ends_missing) == (0, 0) and found.rows[0].ids == whole.ids


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_a_template_with_an_end_gets_no_other(model_dir, template):
    _, made = renderer(model_dir, template=template)
    _, plain = renderer(model_dir, template=template, eos=False)
    examples = [example("Name a colour.", "Red."), example("Hi", "w " * 90, "b")]
    with_end, without = read_rows(examples, made, EosEnding(plain, 1, 64)), read_rows(examples, made)
    assert with_end.rows == without.rows and (with_end.ends_added, with_end.ends_missing) == (0, 0)


def test_a_first_token_has_nothing_to_be_predicted_from(model_dir):
    """Without BOS and with an empty prompt the response begins the sequence."""
    _, made = renderer(model_dir, template="alpaca", bos="never", eos=False)
    from tithe.data.render import EncodedExample

    pass_ = made.build("given", EncodedExample(*(np.array(x, dtype=np.int32) for x in ([], [], [5, 6, 7], []))))
    from tithe.lab.tune.train_rows import TrainRows

    found = TrainRows()
    found.add(example("", "x"), pass_)
    assert found.rows[0].labels == [-100, 6, 7]
    found.add(
        example("", "x"), made.build("given", EncodedExample(*(np.array(x, dtype=np.int32) for x in ([], [], [5], []))))
    )
    assert found.left_out == {"its only token has no context": 1}
