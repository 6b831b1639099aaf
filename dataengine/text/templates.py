"""Read Jinja templates as forms: those of files, and the chat templates of tokenizers, as transformers renders them.

A template is rendered once for each direction, with placeholders for the sentences. So it can place these, but neither
change nor inspect them. A control token that the template writes becomes its id; a text that has one never does.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataengine.errors import InputError, did_you_mean
from dataengine.text.forms import BUILT_IN, SOURCE, TARGET, Form, Part, Template, share_out
from dataengine.text.tokenizers.base import Tokenizer
from dataengine.text.tokenizers.load import tokenizer_file
from dataengine.text.tokenizers.reference import CHAT_NAME, read_tokenizer_config

if TYPE_CHECKING:
    import jinja2

CHAT = "chat"
NAMES = (*BUILT_IN, CHAT)
# Characters that filters change (`upper`, `escape`, `tojson`, `replace`), without white space around them, so `trim`
# changes nothing, as in the sentences of pairs. The second ones are long, for conditions on lengths, and slices.
_INNER = "a Bc\n \"'<&>{}\\é"
_PLACEHOLDERS = [tuple(f"\ufdd1{letter}{_INNER * size}{letter}\ufdd1" for letter in "ST") for size in (1, 40)]


def read_templates(
    weights: Mapping[str, float],
    directions: Sequence[str],
    languages: Mapping[str, str],
    tokenizer: Tokenizer,
    tokenizer_path: str,
    *,
    target_last: bool,
) -> tuple[Template, ...]:
    """The templates of a stream: built-in names or files, with their weights. Empty for that of the paper alone.

    `languages`: code -> name. With `target_last`, nothing of the source may follow the target. Raises InputError.
    """
    if list(weights) == ["paper"]:
        return ()
    forms = []
    for name in weights:
        render = _renderer(name, tokenizer, tokenizer_path)
        own = tuple(render(*direction.split("-"), languages) for direction in directions)
        for form in own:
            _check(name, form, tokenizer, target_last=target_last)
        forms.append(own)
    return share_out(list(weights.values()), forms)


def _renderer(name: str, tokenizer: Tokenizer, tokenizer_path: str) -> Any:
    """The function from two codes of languages, and the names of all, to the form of a template."""
    if name in BUILT_IN:
        return lambda source, target, languages: BUILT_IN[name](languages[source], languages[target])
    if name == CHAT:
        shown, text = _chat_template(tokenizer_path)
    else:
        shown, text = name, _read(name)
    compiled = _compile(shown, text, strict=name != CHAT)

    def render(source: str, target: str, languages: Mapping[str, str]) -> Form:
        names = {
            "source_language": languages[source],
            "target_language": languages[target],
            "source_code": source,
            "target_code": target,
        }
        return _render(shown, compiled, names, tokenizer)

    return render


def _read(path: str) -> str:
    try:
        return Path(path).read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"template {path} is not UTF-8: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(
            f"cannot read template {path}: {error.strerror}{did_you_mean(path, NAMES)}. Give one of "
            f"{', '.join(NAMES)}, or the path of a Jinja file (relative paths start at the working directory, "
            f"{Path.cwd()})."
        ) from None


def _chat_template(tokenizer_path: str) -> tuple[str, str]:
    """The chat template beside a tokenizer, and its name in messages: a file of its own comes first, as in
    transformers."""
    path = tokenizer_file(tokenizer_path)
    beside = path.with_name(CHAT_NAME)
    if beside.is_file():
        return str(beside), _read(str(beside))
    try:
        stated = json.loads(read_tokenizer_config(path) or b"{}").get("chat_template")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{path.with_name('tokenizer_config.json')} is not a JSON object: {error}. Correct it."
        ) from None
    if isinstance(stated, list):  # several, each with a name
        stated = next((one.get("template") for one in stated if one.get("name") == "default"), None)
    if not isinstance(stated, str):
        raise InputError(
            f"`template: chat`, but tokenizer {tokenizer_path} has no chat template: neither {CHAT_NAME} nor a "
            "`chat_template` in tokenizer_config.json is beside it. Use the tokenizer of a chat model, or give a file "
            "with the template."
        )
    return f"chat_template of {path.with_name('tokenizer_config.json')}", stated


def _compile(name: str, text: str, *, strict: bool) -> jinja2.Template:
    """A template with the settings of transformers. `strict` makes undefined variables errors.

    There is no `strftime_now`: the date would change the samples from day to day.
    """
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `generation`, by which transformers finds the answers of an assistant: its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"template {name}, line {error.lineno}: {_line(error)}. Correct the template.") from None


def _render(name: str, template: jinja2.Template, names: Mapping[str, str], tokenizer: Tokenizer) -> Form:
    """The form of a template for the languages in `names`."""
    forms = []
    for source, target in _PLACEHOLDERS:
        text = _output(name, template, source, target, names, tokenizer)
        parts = list(_parts(text, source, target, tokenizer))
        for part in (SOURCE, TARGET):
            if part not in parts:
                raise InputError(
                    f"template {name} drops or changes the {part[0]}. It must write {{{{ {part[0]} }}}}, or the "
                    "content of the messages, as it is; `trim` is the only filter that it may apply to it."
                )
        forms.append(Form(tuple(parts)))
    if forms[0] != forms[1]:
        raise InputError(
            f"template {name} writes other text around some sentences than around others. A template is rendered once "
            "for each direction, so its conditions must not depend on the source or the target."
        )
    return forms[0]


def _output(
    name: str, template: jinja2.Template, source: str, target: str, names: Mapping[str, str], tokenizer: Tokenizer
) -> str:
    """What a template writes for a pair."""
    texts = {token.id: text for text, token in tokenizer.control_tokens.items()}
    request = f"Translate this from {names['source_language']} to {names['target_language']}:\n{source}"
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": target}]
    special = {"eos_token": tokenizer.eos_id, "bos_token": tokenizer.bos_id}
    try:
        return template.render(
            source=source,
            target=target,
            **names,
            messages=messages,
            **{key: texts[token] for key, token in special.items() if token is not None},
            tools=None,  # as apply_chat_template of transformers passes them
            documents=None,
            add_generation_prompt=False,
        )
    except Exception as error:  # a template is a program
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
        place = f", line {lines[-1]}" if lines else ""
        raise InputError(
            f"template {name}{place}: {_line(error)}. A template may use source, target, source_language, "
            "target_language, source_code, target_code, messages, bos_token and eos_token."
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _parts(text: str, source: str, target: str, tokenizer: Tokenizer) -> Iterator[Part]:
    """What a template wrote as the parts of a form."""
    tokens = tokenizer.control_tokens
    space = r"\s*"
    controls = "|".join(
        f"{space * tokens[one].lstrip}{re.escape(one)}{space * tokens[one].rstrip}"
        for one in sorted(tokens, key=len, reverse=True)
    )
    places = {source: SOURCE, target: TARGET}
    for between in re.split(f"({'|'.join(map(re.escape, places))})", text):
        if between in places:
            yield places[between]
            continue
        for number, words in enumerate(re.split(f"({controls})", between) if controls else [between]):
            if number % 2:
                yield ("control", tokens[words if words in tokens else words.strip()].id)
            elif words:
                yield ("text", words)


def _check(name: str, form: Form, tokenizer: Tokenizer, *, target_last: bool) -> None:
    """Raise InputError for forms that documents cannot have."""
    end: Part = ("control", tokenizer.eos_id)
    inside = form.parts[:-1] if form.parts[-1] == end else form.parts
    if end in inside:
        eos = next(text for text, token in tokenizer.control_tokens.items() if token.id == tokenizer.eos_id)
        raise InputError(
            f"template {name} writes the EOS token {eos} inside a document, and EOS ends each document. Name another "
            "token of the tokenizer as `eos_token`, such as <|endoftext|>, or use another template."
        )
    if target_last and SOURCE in form.parts[form.parts.index(TARGET) :]:
        raise InputError(
            f"template {name} writes the source after the target, and with `loss_on: target` all after the beginning "
            "of the target counts. Change the template, or remove `loss_on`."
        )
