"""Jinja templates with limits: a template is foreign code, and must neither run for ever nor be random.

The limits count steps and characters, not seconds, so that a record reaches the same limit on every machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from tithe.errors import TemplateError

MOST_STEPS = 1_000_000  # loop bodies and macro calls of one rendering; 1,000 turns take a few thousand
MOST_CHARACTERS = 1 << 26  # of one rendering, and of every intermediate text or list
RANDOM_NAMES = ("random", "lipsum", "shuffle")  # Jinja's filters and functions that draw at random
_WIDTH_FILTERS = ("center", "indent", "wordwrap")  # filters that pad to a width given as a number


class LimitExceeded(Exception):
    """A limit that a rendering exceeded."""


class BoundedTemplate:
    """A compiled chat template that stops at `MOST_STEPS` and `MOST_CHARACTERS`.

    Args:
        name: of the template, for messages.
        source: the Jinja text.

    Raises:
        TemplateError: the source cannot be compiled or is random.
    """

    def __init__(self, name: str, source: str) -> None:
        self._used = threading.local()
        self._template = self._compile(name, source)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render the template.

        Raises:
            LimitExceeded: a limit is reached.
            Exception: whatever the template raises.
        """
        self._used.steps = 0
        pieces, characters = [], 0
        for piece in self._template.generate(**variables):
            characters += len(piece)
            if characters > MOST_CHARACTERS:
                raise LimitExceeded(f"its text has more than {MOST_CHARACTERS:,} characters")
            pieces.append(piece)
        return "".join(pieces)

    def _compile(self, name: str, source: str) -> jinja2.Template:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        try:
            # Use transformers' own sandbox, filters and tags, but not its `render_jinja_template`: that turns
            # `strftime_now` into text and takes the date from the clock. Compile an empty text to get the environment:
            # compiling `source` there would fold its constants without limits.
            environment: Any = _compile_jinja_template("").environment.overlay()
            self._bound(environment)
            tree = environment.parse(source)
            reject_randomness(name, tree)
            code = environment.compile(_StepCounter().visit(tree))
            template: jinja2.Template = environment.template_class.from_code(
                environment, code, environment.make_globals(None)
            )
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"template `{name}`, line {error.lineno}: {error.message}") from error
        except jinja2.TemplateError as error:
            raise TemplateError(f"template `{name}` cannot be compiled: {error}") from error
        except RecursionError as error:
            raise TemplateError(f"template `{name}` cannot be compiled: it is nested too deeply") from error
        except (
            SyntaxError,
            ValueError,
            OverflowError,
            MemoryError,
        ) as error:  # from the Python code that Jinja generates
            raise TemplateError(f"template `{name}` cannot be compiled: {type(error).__name__}: {error}") from error
        return template

    def _bound(self, environment: Any) -> None:
        call, operate = environment.call, environment.call_binop

        def bounded_call(context: Any, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
            if function is step:
                return step()
            check_numbers((*args, *named.values()))
            return check_size(call(context, function, *args, **named))

        def bounded_operation(context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator in ("*", "**"):
                check_product(operator, left, right)
            return check_size(operate(context, operator, left, right))

        def step() -> str:
            self._used.steps += 1
            if self._used.steps > MOST_STEPS:
                raise LimitExceeded(f"it takes more than {MOST_STEPS:,} steps")
            return ""

        # Intercepted operations are not folded at compile time either, so constants cannot evade the limits.
        environment.call, environment.call_binop = bounded_call, bounded_operation
        environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
        environment.count_step, environment.join_texts = step, join_texts
        environment.filters = {
            **environment.filters,
            **{key: with_checked_numbers(environment.filters[key]) for key in _WIDTH_FILTERS},
        }


class _StepCounter(NodeTransformer):
    """A transformer that counts a step in every loop body and macro, and limits `~` concatenations."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _step_node(node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _step_node(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("join_texts"), node.nodes, [], None, None, lineno=node.lineno)


def _step_node(line: int) -> nodes.Node:
    call = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None, lineno=line)
    return nodes.ExprStmt(call, lineno=line)


def reject_randomness(name: str, tree: nodes.Template) -> None:
    """Refuse a template that draws at random: a record would get a different score each time.

    Raises:
        TemplateError: naming the line.
    """
    names: list[nodes.Filter | nodes.Name] = [*tree.find_all(nodes.Filter)]
    names += (node for node in tree.find_all(nodes.Name) if node.ctx == "load")
    for node in names:
        if node.name in RANDOM_NAMES:
            raise TemplateError(
                f"template `{name}`, line {node.lineno}: it uses `{node.name}`, so it would write the same dialogue "
                "differently each time",
                hint="give a template without it: `--template chat.jinja`",
            )


def join_texts(*parts: Any) -> str:
    """Concatenate the parts, refusing a text over the limit."""
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise LimitExceeded(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
    return "".join(texts)


def check_size(value: Any) -> Any:
    """Return the value, refusing a text or list over the limit."""
    if isinstance(value, (str, list, tuple)) and len(value) > MOST_CHARACTERS:
        raise LimitExceeded(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
    return value


def check_numbers(values: tuple[Any, ...]) -> None:
    """Refuse huge widths and counts for `ljust`, `center`, ... before the text is built."""
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_CHARACTERS:
            raise LimitExceeded(f"it asks for more than {MOST_CHARACTERS:,} characters")


def check_product(operator: str, left: Any, right: Any) -> None:
    """Refuse a repetition or power over the limit before it is computed."""
    sizes = [len(one) if isinstance(one, (str, list, tuple)) else one for one in (left, right)]
    if not all(isinstance(size, int) for size in sizes):
        return
    whole = not isinstance(left, int) or not isinstance(right, int)
    if (whole and abs(sizes[0] * sizes[1]) > MOST_CHARACTERS) or (
        operator == "**" and abs(sizes[0]).bit_length() * abs(sizes[1]) > MOST_CHARACTERS
    ):
        raise LimitExceeded(f"it makes more than {MOST_CHARACTERS:,} characters or digits")


def with_checked_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter so that its arguments pass `check_numbers`."""

    def bounded(*args: Any, **named: Any) -> Any:
        check_numbers((*args, *named.values()))
        return function(*args, **named)

    bounded.__dict__.update(function.__dict__)  # by these attributes Jinja knows to pass the context or environment
    return bounded
