"""What clients answer, parsed in one place: size and form are checked before the text is read, then every field.

A client may be hostile: an answer that breaks a rule here is refused by name, and the session goes on.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from flwr.app import ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError

from zk0.errors import FederationError
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.shown_journals import JOURNAL
from zk0.records import ClientScore, JoiningStep, Member, Record, Update, clean_text
from zk0.secure.messages import Consent, KeyAdvert, MaskedUpdate, RevealedShares, SealedShares

MAX_REASON = 2000
"""Longest reason of a refusal, in characters; a longer one is cut."""
_MAX_PATH = 4096
_SAFE_CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class AnswerForm(NamedTuple):
    """The key of one kind of answer, the record in it, and the length of its text."""

    key: str
    record: type[Record] | None
    """None: text or a number that is stored as it is."""
    max_length: int
    """In characters."""
    name: str
    """For messages: "its answer is not NAME"."""


MEMBER = AnswerForm("member", Member, 1 << 24, "a member record")
UPDATE = AnswerForm("update", Update, 1 << 16, "an update")
SCORE = AnswerForm("score", ClientScore, 1 << 23, "a score")
REPORT = AnswerForm("report", None, 1 << 24, "a joining report")
_MAX_SECURE = 1 << 23
ADVERT = AnswerForm("advert", KeyAdvert, 1 << 13, "the keys of a client")
SEALED = AnswerForm("sealed", SealedShares, _MAX_SECURE, "shares of its secrets")
MASKED = AnswerForm("masked", MaskedUpdate, 1 << 13, "a masked update")
CONSENT = AnswerForm("consent", Consent, _MAX_SECURE, "a consent to a sum")
REVEALED = AnswerForm("revealed", RevealedShares, _MAX_SECURE, "shares of masks")
STEPS_KEY = "steps"
"""Key of the steps of a client that joins, in an answer with a member record or a refusal."""
_MAX_STEPS, _MAX_STEPS_TEXT = 8, 1 << 14
_STEPS = TypeAdapter(tuple[JoiningStep, ...])
_ANSWER_FORMS = (MEMBER, UPDATE, SCORE, REPORT, ADVERT, SEALED, MASKED, CONSENT, REVEALED)
_FORMS = {form.key: form for form in _ANSWER_FORMS}
_LIMITS = {key: form.max_length for key, form in _FORMS.items()} | {
    WEIGHTS_PATH: _MAX_PATH, "refusal": 1 << 24, STEPS_KEY: _MAX_STEPS_TEXT,
    "done": 0, "checked": 0, "may_pass": 0, JOURNAL: 1 << 10,
}  # fmt: skip
"""Keys that an answer may have, and the length of their text; 0: a number or a truth value."""


def refusal(reason: str, passing: bool = False) -> RecordDict:
    """Return the answer that gives a reason in place of what was asked; `passing`: a later request may succeed."""
    more = {"may_pass": True} if passing else {}
    return RecordDict({"answer": ConfigRecord({"refusal": reason, **more})})


def answer_problem(content: RecordDict) -> str:
    """Return why the content of a reply is no answer; empty where it has only known keys of the right type and size."""
    answer = content.get("answer")
    if not isinstance(answer, ConfigRecord):
        return "an empty answer"
    for key, value in answer.items():
        if key not in _LIMITS:
            return f"an answer with the unknown key {clean_text(str(key), 60)!r}"
        limit = _LIMITS[key]
        if isinstance(value, str) != bool(limit) or not isinstance(value, str | bool | int):
            return f"an answer whose {key} is of type {type(value).__name__}"
        if isinstance(value, str) and len(value) > limit:
            return f"an answer whose {key} has {len(value)} characters; expected at most {limit}"
    return ""


def answered_text(content: RecordDict, form: AnswerForm) -> str:
    """Return the text of an answer.

    Raises:
        FederationError: it has no such text, or a longer one than the form allows.
    """
    answer = content["answer"]
    text = answer.get(form.key) if isinstance(answer, Mapping) else None
    if not isinstance(text, str):
        raise FederationError(f"its answer is not {form.name} (no text {form.key})")
    if len(text) > form.max_length:
        raise FederationError(f"its answer is not {form.name} ({len(text)} characters; at most {form.max_length})")
    return text


def parse_answer[T: Record](content: RecordDict, form: AnswerForm, record: type[T]) -> T:
    """Return the record in an answer.

    Raises:
        FederationError: the answer does not hold one, or a field is out of bounds.
    """
    text = answered_text(content, form)
    try:
        return record.model_validate_json(text)
    except ValidationError as e:
        fault = e.errors(include_url=False)[0]
        problem = f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
        raise FederationError(f"its answer is not {form.name} ({clean_text(problem, MAX_REASON)})") from e


def parse_steps(content: RecordDict) -> tuple[JoiningStep, ...]:
    """Return the steps of a client that joins, which are only shown: none where the answer holds no valid ones."""
    text = content["answer"].get(STEPS_KEY, "[]")
    try:
        return _STEPS.validate_json(str(text))[:_MAX_STEPS]
    except ValidationError:
        return ()


def is_safe_client_name(name: str) -> bool:
    """Return whether a name can be part of a file name on every system."""
    return _SAFE_CLIENT.fullmatch(name) is not None
