"""Encode conversations and critiques as token ids, labels and the position of the reward, and decode critiques.

Training, scoring and serving all get their ids from this module, so they cannot diverge. (In the reference implementation,
they do; see [`ReferenceFormat`].) A sequence has one of these layouts, and the reward is read at its last token:

    [prompt messages][assistant: response][user: critique prompt + " " + critique]<end-of-turn>      CLoud
    [prompt messages][assistant: response]<end-of-turn>                                              classic

The tokenizer's chat template renders the turns. Prompts, responses and critiques are untrusted: strings in them that equal
an added token (`<|im_end|>`, `<think>`, …) are encoded as plain text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any, TypeVar, cast

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .configuration_cloud import CLoudConfig, spell_critique_prompt
from .control_tokens import CUT, ESCAPED, SLOT, ControlTokens, pieces_of, unescape
from .end_tokens import join_ids
from .prompts import REASONING_FIELDS, Conversation, change_texts, read_prompt, read_response, with_thinking
from .template_dates import pin_date, with_clock
from .template_skeletons import USUAL_ROLES, Skeleton, marks_in, spell


IGNORE_INDEX = -100

_T = TypeVar("_T")

# Maximum number of conversation shapes in the cache, and the maximum length of a cached shape
_MOST_SHAPES, _LONGEST_SHAPE = 1024, 20_000

# Limit on the characters rendered to check a conversation's roles and constants; each check renders the conversation again
_MOST_CHECKING = 2_000_000

# Marks a prompt whose start was cut off
_OMISSION = "…"

_THINK_TAGS = ("<think>", "</think>")

# Spaces before punctuation, which decoding removed by default before transformers 5
_SPACES_CLEANED_UP = {
    " .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s", " 've": "'ve", " 're": "'re",
}  # fmt: skip


@dataclass(frozen=True)
class EncodedPrefix:
    """A conversation encoded up to where the critique starts (for a classic model: up to and including the last end of turn)."""

    input_ids: tuple[int, ...]
    # Whether the chat template changes anything in the response except leading and trailing white space. Qwen 3 drops `<think>` blocks, so
    # responses that differ only in such a block get the same ids
    response_changed: bool
    # The rendered context, with untrusted text cut where it spells an added token
    text: str
    # The rendering of the same turns with harmless texts, in which all added tokens are the template's own
    reference: str


@dataclass(frozen=True)
class EncodedCritique:
    """A conversation with its critique as token ids."""

    # Up to and including the end of turn at which the reward is read
    input_ids: tuple[int, ...]
    # Number of leading ids without labels, which are the context. In training with `ReferenceFormat`, labels start at the
    # critique prompt
    prefix_length: int
    response_changed: bool = False

    @property
    def labels(self) -> list[int]:
        """Unshifted labels for the critique LM loss, `-100` on the context."""
        return [IGNORE_INDEX] * self.prefix_length + list(self.input_ids[self.prefix_length :])

    @property
    def reward_position(self) -> int:
        """Index of the token at whose hidden state the reward is read."""
        return len(self.input_ids) - 1


class CritiqueFormat:
    r"""
    Encodes a prompt, a response and a critique as the token ids for training and scoring a CLoud model.

    The constructor renders a probe with the tokenizer's chat template to find the end of turn, and refuses a template that
    does not close the critique turn with a dedicated token.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer with a chat template.
        critique (`bool`, *optional*, defaults to `True`):
            `False` for a classic reward model, which has no critique turn and reads the reward at the end of the response.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn. Defaults to the critique prompt of the published checkpoints.
        critique_role (`str`, *optional*, defaults to `"user"`):
            Role of the critique turn.
        keep_thinking (`bool`, *optional*, defaults to `False`):
            Whether to keep `<think>` blocks that the chat template would drop.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Variables for the chat template.

    Raises:
        `ValueError`: If the tokenizer has no chat template or is not fast, or if its template refuses the turn order or
            does not close the critique turn with a dedicated token.

    Attributes:
        end_token_id (`int`): Id of the end-of-turn token at which the reward is read.
        tail (`str`): What the chat template writes after the text of that turn.

    Examples:

    ```python
    >>> critique_format = CritiqueFormat(tokenizer)
    >>> encoded = critique_format.encode("What is 2+2?", "4", "Correct and brief.")
    >>> tokenizer.decode(encoded.input_ids[encoded.prefix_length :])
    ' Correct and brief.<|im_end|>'
    ```
    """

    name = "cloud"
    repetition_penalty = 1.0
    allows_empty_prompts = False
    # Whether the reward of a generated critique is read from its re-tokenised text, in a second pass
    rereads_critiques = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        critique: bool = True,
        critique_prompt: str | None = None,
        critique_role: str = "user",
        keep_thinking: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.critique = critique
        self.critique_prompt = spell_critique_prompt(critique_prompt, self.name)
        if critique and not self.critique_prompt.strip():
            raise ValueError("`critique_prompt` is empty; the critique turn needs text to open it.")
        self.critique_role = critique_role
        self.keep_thinking = keep_thinking
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer. CritiqueFormat needs one (a `tokenizer.json`)."
            )
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, which the critique format needs. "
                "Set `tokenizer.chat_template` or, in training, `--chat_template_path` to llama-3, chatml or a Jinja file, whichever the base "
                "was trained with."
            )
        # Pin the date even if the config (such as a published checkpoint's) sets none: rewards must not change from day to day
        self.chat_template_kwargs = with_clock(pin_date(tokenizer, chat_template_kwargs) or {})
        # Caches of skeletons' renderings, and of the control ids in renderings
        self._references: dict[str, str] = {}
        self._expected: dict[str, list[int]] = {}
        self._controls = ControlTokens(tokenizer, _THINK_TAGS if keep_thinking else ())
        self._find_end_of_turn()
        self._check_neighbours()

    def __getstate__(self) -> dict[str, Any]:
        # This object is part of dataset fingerprints, which must not depend on the caches
        return {**self.__dict__, "_references": {}, "_expected": {}}

    @classmethod
    def from_config(
        cls, config: CLoudConfig, tokenizer: PreTrainedTokenizerBase, critique_prompt: str | None = None
    ) -> "CritiqueFormat":
        """
        Return the format that a config names. `critique_prompt`, if given, replaces the config's. Raises `ValueError` if the
        tokenizer does not belong to the model.
        """
        critique_format = format_class(config.format)(
            tokenizer,
            config.critique,
            config.critique_prompt if critique_prompt is None else critique_prompt,
            config.critique_role,
            config.keep_thinking,
            config.chat_template_kwargs,
        )
        vocabulary = config.text_config.vocab_size
        if critique_format.end_token_id >= vocabulary:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} ends the turn with token {critique_format.end_token_id}, but "
                f"the model's vocabulary has only {vocabulary} tokens. Load the tokenizer that was saved with the model."
            )
        if config.critique_end_token_id not in (None, critique_format.end_token_id):
            raise ValueError(
                f"The model reads its reward at token {config.critique_end_token_id}, but the tokenizer "
                f"{tokenizer.name_or_path!r} ends the turn with token {critique_format.end_token_id} "
                f"({critique_format.end_token!r}). Load the tokenizer that was saved with the model."
            )
        return critique_format

    # ------------------------------------------------------------------------------------------------------ encoding

    def encode_prefix(self, prompt, response) -> EncodedPrefix:
        """
        Encode a conversation up to where the critique starts. For `prompt`, see [`Scorer`]. `response` is text, which may be
        empty, or an assistant message with tool calls or reasoning.

        Raises:
            `ValueError`: If the prompt or response is invalid, or if the chat template does not show a field of a message; the
                error says why.
        """
        given = self._read(prompt, response)
        shown = given if self.keep_thinking else self._without_dropped_text(given)
        skeleton = Skeleton(shown)
        reference = _remembered(self._references, skeleton.key, lambda: self._check_skeleton(skeleton))
        # `shatter` encodes each character separately, for texts that still become control tokens after `plain`
        for cut in (self._controls.plain, self._controls.shatter):
            text = self._render_turns(change_texts(shown, cut))
            ids = self._encode_text(text, reference)
            if ids is not None:
                changed = given.messages[-1]["content"].strip() not in unescape(text.replace(CUT, ""))
                return EncodedPrefix(tuple(ids), changed, text, reference)
        raise ValueError(f"Text in this conversation would be read as control tokens: {unescape(text)!r:.200}")

    def complete(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """
        Append a critique and its end of turn to a prefix.

        Args:
            prefix ([`EncodedPrefix`]):
                From [`CritiqueFormat.encode_prefix`].
            critique (`str` or `list[int]`, *optional*):
                The critique's text, or its ids as generated, with or without the end of turn. `None` for a classic model.

        Raises:
            `ValueError`: If the critique is missing, is passed to a classic model, or contains an end of turn before its last id.
        """
        if self.critique != (critique is not None):
            needs = "A CLoud model needs a critique" if self.critique else "A classic model does not accept a critique"
            raise ValueError(f"{needs}, but `critique` is {critique!r:.80}.")
        context = prefix.input_ids
        if critique is None:
            return EncodedCritique(context, len(context), prefix.response_changed)
        ids = self._critique_ids(prefix, critique) if isinstance(critique, str) else self._checked_ids(critique)
        return EncodedCritique((*context, *ids, self.end_token_id), len(context), prefix.response_changed)

    def complete_for_training(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """Append a critique for training. The ids are the same as those that [`CritiqueFormat.complete`] returns for scoring."""
        return self.complete(prefix, critique)

    def encode(self, prompt, response, critique: str | list[int] | None = None) -> EncodedCritique:
        """Encode a complete sequence: [`CritiqueFormat.encode_prefix`], then [`CritiqueFormat.complete`]."""
        return self.complete(self.encode_prefix(prompt, response), critique)

    def decode(self, critique_ids: list[int]) -> str:
        """Decode generated critique ids, without special tokens or surrounding white space."""
        return cast(str, self.tokenizer.decode(critique_ids, skip_special_tokens=True)).strip()

    def stop_ids(self, config: CLoudConfig, generation_config: GenerationConfig | None = None) -> list[int]:
        """
        Return the ids, other than that of the end-of-turn token, that end a critique: the end-of-sequence ids in the language model's config
        and, if given, in the model's generation config, at which vLLM ends critiques too.
        """
        more = None if generation_config is None else generation_config.eos_token_id
        return [
            token_id for token_id in join_ids(config.text_config.eos_token_id, more) if token_id != self.end_token_id
        ]

    def banned_ids(self, config: CLoudConfig) -> list[int]:
        """Return the ids that must not be generated: the reward token, which vLLM uses in place of the end-of-turn token."""
        return [] if config.reward_token_id is None else [config.reward_token_id]

    def truncate_prompt(self, prompt, excess: int):
        """
        Shorten a prompt by at least `excess` tokens, oldest text first. System messages and the turns themselves are kept.

        Returns:
            The shortened prompt, as text or as messages like the original, or `None` if the messages that may be shortened
            do not contain that many tokens.
        """
        conversation = read_prompt(prompt, self.allows_empty_prompts)
        messages = []
        mark_length = len(self._encode(_OMISSION))
        for message in conversation.messages:
            if excess > 0 and message["role"] != "system" and message.get("content"):
                starts = self._token_starts(message["content"])
                cut = min(excess + mark_length, len(starts) - 1)
                if cut > mark_length:
                    message = {**message, "content": _OMISSION + message["content"][starts[cut] :]}
                    excess -= cut - mark_length
            messages.append(message)
        if excess > 0:
            return None
        if isinstance(prompt, str):
            return messages[0]["content"]
        return {"messages": messages, "tools": conversation.tools} if isinstance(prompt, dict) else messages

    # ----------------------------------------------------------------------------------------------------- rendering

    def _read(self, prompt, response) -> Conversation:
        conversation = read_prompt(prompt, self.allows_empty_prompts)
        conversation = replace(conversation, messages=[*conversation.messages, read_response(response)])
        conversation = change_texts(conversation, self._check_text)
        if self.keep_thinking and any(field in turn for turn in conversation.messages for field in REASONING_FIELDS):
            return self._with_reasoning(conversation)
        return conversation

    def _with_reasoning(self, conversation: Conversation) -> Conversation:
        """Move reasoning that the chat template would not show into the content, as a thinking block."""
        skeleton = Skeleton(conversation)
        text = self._apply_template(self._with_critique_turn(skeleton.conversation))
        hidden = {(index, field) for index, field, mark in skeleton.fields if mark not in text}
        messages = []
        for index, message in enumerate(conversation.messages):
            for field in REASONING_FIELDS:
                if message["role"] == "assistant" and (index, field) in hidden and isinstance(message[field], str):
                    content = with_thinking(message[field], message["content"])
                    message = {name: value for name, value in message.items() if name != field} | {"content": content}
            messages.append(message)
        return replace(conversation, messages=messages)

    def _check_skeleton(self, skeleton: Skeleton) -> str:
        """Render a skeleton, and check that the chat template shows everything that the messages contain."""
        conversation = skeleton.conversation
        text = self._render_turns(conversation)
        if conversation.tools and text == self._render_turns(replace(conversation, tools=None)):
            raise ValueError("The chat template does not show `tools`; leave them out, or put them into a message.")
        marks = marks_in(text)
        for index, field, mark in skeleton.fields:
            if mark not in marks and mark not in text:  # checking the set first keeps the time linear in the length
                raise self._not_shown(conversation, index, field)
        roles, constants = skeleton.roles(), skeleton.constants_to_check(text)
        if (len(roles) + len(constants)) * (len(text) + 1000) > _MOST_CHECKING:
            raise ValueError(
                f"Checking these messages takes {len(roles)} renderings for their roles, and {len(constants)} for their fields that are "
                "true, false, null or empty, which is too many for a conversation of this length. Use fewer roles, and leave such fields "
                "out or put them into `content`."
            )
        for role, indices in roles:
            self._check_role(role, indices[0], skeleton.without_role(indices), text)
        for path in constants:
            if text == self._render_turns(skeleton.with_other_constant(path)):
                raise self._not_shown(conversation, path[0], spell(path))
        return text

    def _check_role(self, role: str, index: int, without: Conversation, text: str):
        """Check that the chat template distinguishes a role from others, and does not turn an unknown role into a control token."""
        try:
            other = self._render_turns(without)
        except ValueError:
            return
        if other == text:
            raise ValueError(
                f"The chat template does not distinguish the role of message {index}, {role!r}, from others (misspelt?)."
            )
        template = str(self.tokenizer.chat_template)
        known = role in USUAL_ROLES or f"'{role}'" in template or f'"{role}"' in template
        if not known and self._controls.ids_in(self._encode(other)) != self._controls.ids_in(self._encode(text)):
            raise ValueError(
                f"The role of message {index} is {role!r}, which the chat template turns into a control token. Use one of "
                f"{', '.join(USUAL_ROLES)}."
            )

    def _not_shown(self, conversation: Conversation, index: int, field: str) -> ValueError:
        role = conversation.messages[index]["role"]
        response = index == len(conversation.messages) - 1
        if field == "content" and not response and "tool_calls" not in conversation.messages[index]:
            return ValueError(f"The chat template does not show message {index}, whose role is {role!r} (misspelt?).")
        place = "the response" if response else f"message {index} ({role})"
        cure = "Leave it out" if field == "content" else "Leave it out, or put it into `content`"
        if field.partition(".")[0] in REASONING_FIELDS:
            cure = "Leave it out, or create the model with `keep_thinking`, which shows it"
        return ValueError(f"The chat template does not show `{field}` of {place}. {cure}.")

    def _render_turns(self, conversation: Conversation) -> str:
        """Render turns, and cut the text off after the critique prompt (for a classic model: after the last turn's end token)."""
        if not self.critique:
            text = self._apply_template(conversation)
            if not text.endswith(self.tail):
                raise ValueError(
                    "The chat template ends this conversation differently from others, so the reward has no fixed position."
                )
            return text[: len(text) - len(self.tail)] + self.end_token
        text = self._apply_template(self._with_critique_turn(conversation))
        return text[: text.rindex(f" {SLOT}")]

    def _with_critique_turn(self, conversation: Conversation) -> Conversation:
        if not self.critique:
            return conversation
        turn = {"role": self.critique_role, "content": f"{self.critique_prompt} {SLOT}"}
        return replace(conversation, messages=[*conversation.messages, turn])

    def _apply_template(self, conversation: Conversation) -> str:
        try:
            tools: Any = conversation.tools
            text = self.tokenizer.apply_chat_template(
                conversation.messages, tools=tools, tokenize=False, **self.chat_template_kwargs
            )
        except (TemplateError, TypeError, AttributeError, LookupError) as error:
            roles = ", ".join(message["role"] for message in conversation.messages)
            raise ValueError(f"The chat template refuses this conversation (roles: {roles:.200}): {error}") from error
        self._check_shown(conversation.messages, cast(str, text))
        return cast(str, text)

    @staticmethod
    def _check_shown(messages: list[dict[str, Any]], text: str):
        """Check that `text` shows all messages in order. System messages are checked separately, because some templates move them."""
        position = {True: 0, False: 0}
        for index, message in enumerate(messages):
            # Templates may drop an assistant's thinking and reformat tool results
            if message["role"] in ("assistant", "tool"):
                continue
            content, is_system = message["content"].strip(), message["role"] in ("system", "developer")
            found = text.find(content, position[is_system])
            if found < 0:
                raise ValueError(
                    f"The chat template does not show message {index}, whose role is {message['role']!r} (misspelt?)."
                )
            position[is_system] = found + len(content)

    def _without_dropped_text(self, conversation: Conversation) -> Conversation:
        """
        Replace each assistant text that contains added-token strings with the part of it that the chat template keeps. The template must
        see these strings uncut, because it uses them to find what to drop (`<think>…</think>`).

        This needs at most six renderings, regardless of the number of turns. The first has a mark in place of each such text. If marks
        are missing from it, the second checks that the template drops the texts that these marks stand for. The next two leave the shown
        texts unchanged: one those at even positions, the other those at odd positions. An unchanged text therefore always lies between
        the marks of its neighbours. If a text changes what surrounds it, as in Qwen 3's tool calls, where a line break follows only a text
        that is shown, the last two check that the template treats it as empty.
        """
        plain = change_texts(conversation, self._controls.plain).messages
        texts = {
            index: message["content"].translate(ESCAPED)
            for index, message in enumerate(conversation.messages)
            if message["role"] == "assistant" and message["content"] != plain[index]["content"]
        }
        if not texts:
            return conversation

        def rendered(as_they_are: Sequence[int], empty: Sequence[int] = ()) -> tuple[str, dict[int, tuple[int, int]]]:
            """Render with marks in place of the other texts. Return the rendering and, by message, the marks' positions."""
            contents = {index: f"{SLOT}{index}{SLOT}" for index in texts} | dict.fromkeys(empty, "")
            contents |= {index: texts[index] for index in as_they_are}
            turns = [{**turn, "content": contents[i]} if i in contents else turn for i, turn in enumerate(plain)]
            text = self._render_turns(replace(conversation, messages=turns))
            return text, {int(mark[1]): mark.span() for mark in re.finditer(f"{SLOT}(\\d+){SLOT}", text)}

        frame, places = rendered(())
        shown = [index for index in texts if index in places]
        hidden = [index for index in texts if index not in places]
        kept = dict.fromkeys(hidden if hidden and rendered(hidden)[0] == frame else (), "")
        slots = [(0, 0), *(places[index] for index in shown), (len(frame), len(frame))]
        for parity in (0, 1):
            text, marks = rendered(shown[parity::2])
            spans = [(0, 0), *(marks.get(index, (0, 0)) for index in shown), (len(text), len(text))]
            for number, index in list(enumerate(shown, 1))[parity::2]:
                before = frame[slots[number - 1][1] : slots[number][0]]
                after = frame[slots[number][1] : slots[number + 1][0]]
                part = text[spans[number - 1][1] : spans[number + 1][0]]
                if part.startswith(before) and part.endswith(after) and len(part) >= len(before) + len(after):
                    kept[index] = unescape(part[len(before) : len(part) - len(after)])
        unsettled = [index for index in shown if index not in kept]
        if unsettled and rendered(unsettled)[0] == rendered((), empty=unsettled)[0]:
            kept |= dict.fromkeys(unsettled, "")
        messages = [
            {**message, "content": kept[index]}
            if index in kept and kept[index].strip() != message["content"].strip()
            else message
            for index, message in enumerate(conversation.messages)
        ]
        return replace(conversation, messages=messages)

    # ------------------------------------------------------------------------------------------------ text to tokens

    def _encode_text(self, text: str, reference: str) -> list[int] | None:
        """Encode a rendering piece by piece; return `None` if its control tokens differ from those in `reference`."""
        first, *pieces = pieces_of(text)
        ids = [*self._encode(first), *self._encode_after(pieces)]
        expected = _remembered(self._expected, reference, lambda: self._controls.ids_in(self._encode(reference)))
        return ids if self._controls.ids_in(ids) == expected else None

    def _continue(self, prefix: EncodedPrefix, text: str, reference: str = "") -> list[int] | None:
        """
        Encode a prefix and the text after it. Returns `None` in the same case as [`CritiqueFormat._encode_text`]. The text cannot change
        any id before the prefix's last control token, so a prefix with the usual ending is encoded again only from that token on. This
        keeps long prefixes cheap.
        """
        tail, tail_ids = self._tail
        start = len(prefix.input_ids) - len(tail_ids)
        if not (tail and prefix.text.endswith(tail) and prefix.input_ids[start:] == tail_ids):
            return self._encode_text(prefix.text + text, prefix.reference + reference)
        ids = self._encode_text(tail + text, tail + reference)
        return None if ids is None else [*prefix.input_ids[:start], *ids]

    def _critique_ids(self, prefix: EncodedPrefix, critique: str) -> list[int]:
        critique = self._check_text(critique, "critique").strip()
        if not critique:
            return []
        context = list(prefix.input_ids)
        for cut in (self._controls.plain, self._controls.shatter):
            text = f" {cut(critique)}"
            ids = self._continue(prefix, text)
            if ids is not None and ids[: len(context)] == context:
                return ids[len(context) :]
            # The tokenizer merged the critique's first characters into the context's last token. A model that generates its
            # critique never sees that merge, so the context is kept and the critique encoded separately.
            ids = self._encode_after(pieces_of(text))
            if not self._controls.ids_in(ids):
                return ids
        raise ValueError(f"The critique would be read as control tokens: {critique!r:.200}")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _encode_after(self, pieces: list[str]) -> list[int]:
        """Encode pieces that continue other text. Some tokenizers would prepend a space to text that is encoded on its own."""
        # If the anchor's ids do not change when a piece follows it, the remaining ids are those of the piece in the middle of a text
        found: dict[str, list[int]] = {}
        left = list(dict.fromkeys(pieces))
        for anchor in (":", "a", "\n", " ", "0"):
            if not left:
                break
            anchor_ids = self._encode(anchor)
            texts = [anchor + piece for piece in left]
            encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            found |= {
                piece: ids[len(anchor_ids) :]
                for piece, ids in zip(left, encoded, strict=True)
                if ids[: len(anchor_ids)] == anchor_ids
            }
            left = [piece for piece in left if piece not in found]
        if left:
            raise ValueError(f"The tokenizer cannot encode {left[0]!r:.40} separately from the text before it.")
        return [token_id for piece in pieces for token_id in found[piece]]

    def _token_starts(self, text: str) -> list[int]:
        """Return, for each token of a text, the index of the character at which it starts."""
        pieces = self._controls.cut(text)
        offsets = self.tokenizer(pieces, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        places = accumulate(map(len, pieces), initial=0)
        return [place + start for place, spans in zip(places, offsets, strict=False) for start, _ in spans]

    def _checked_ids(self, critique_ids: list[int]) -> list[int]:
        ids = list(critique_ids)
        if ids and ids[-1] == self.end_token_id:
            ids.pop()
        if self.end_token_id in ids:
            raise ValueError(
                f"The critique's ids contain the end-of-turn token {self.end_token_id} before the last position."
            )
        return ids

    def _check_text(self, text: str, field: str = "text") -> str:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {field} contains half of a surrogate pair at character {error.start}: {text!r:.80}"
            ) from error
        return text

    # -------------------------------------------------------------------------------------------------- construction

    def _find_end_of_turn(self):
        """Render a probe to find the token that closes the turn at whose end the reward is read."""
        probe = Conversation([{"role": "user", "content": "x"}, {"role": "assistant", "content": SLOT}])
        if self.critique:
            probe.messages[1]["content"] = "x"
            probe.messages.append({"role": self.critique_role, "content": f"{self.critique_prompt} {SLOT}"})
        role = self.critique_role if self.critique else "assistant"
        text = self._apply_template(probe)
        if SLOT not in text:
            raise ValueError(f"The chat template does not show the text of the last {role} turn.")
        tail = text[text.rindex(SLOT) + 1 :]
        end = self._controls.pattern.match(tail)
        token_id = self.tokenizer.convert_tokens_to_ids(end.group()) if end else -1
        if end is None or token_id not in self._controls.token_ids:
            other = "assistant" if role == "user" else "user"
            hint = f" Try `critique_role={other!r}`, or a" if self.critique else " Use a"
            raise ValueError(
                f"The chat template closes a {role} turn with {tail!r:.40}, which is not a dedicated token: there is no "
                f"end-of-turn token at which to read the reward.{hint} base model whose turns end with a special token."
            )
        self.end_token: str = end.group()
        self.end_token_id: int = token_id
        self.tail: str = tail

    def _check_neighbours(self):
        """Check that the tokenizer recognises the template's control tokens regardless of the text next to them."""
        found = []
        for content in ("x", "-"):
            turns = [{"role": role, "content": content} for role in ("user", "assistant")]
            text = self._render_turns(Conversation(turns))
            found.append(self._controls.ids_in(self._encode(text)))
        if found[0] != found[1] or found[0].count(self.end_token_id) != text.count(self.end_token):
            raise ValueError(
                f"The tokenizer recognises control tokens of the chat template (such as {self.end_token!r}) only next to certain text. "
                "Add these tokens with `normalized=False` and `single_word=False`."
            )
        starts = [match.start() for match in self._controls.pattern.finditer(text)]
        tail = text[starts[-1] :] if self.critique else ""
        tail_ids = self._encode(tail) if tail else []
        self._tail = (tail, tuple(tail_ids)) if self._controls.ids_in(tail_ids[:1]) else ("", ())


class ReferenceFormat(CritiqueFormat):
    r"""
    The [`CritiqueFormat`] of the authors' published checkpoints (`CLoudConfig(format="reference")`).

    It reproduces their training and scoring, quirks included, because otherwise the rewards would differ from the published
    ones. In training, one space separates the critique from its prompt ("question: Good."); in scoring, nothing does
    ("question:Good."). Also, scoring does not read the reward from the generated ids. It decodes them, removes spaces before
    punctuation, strips the text, tokenises it again, and reads the reward from the result. A control token that the model
    itself wrote remains a control token; other text never becomes one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            A fast tokenizer with a chat template that ends user and assistant turns with the same token, as Llama 3 does.
        critique_prompt (`str`, *optional*):
            Text that opens the critique turn, including the trailing space that precedes the critique in training.
        critique, critique_role, keep_thinking, chat_template_kwargs:
            See [`CritiqueFormat`]; the role and `keep_thinking` cannot be changed.

    Raises:
        `ValueError`: As in [`CritiqueFormat`], or if user and assistant turns end differently.
    """

    name = "reference"
    repetition_penalty = 1.01
    allows_empty_prompts = True
    rereads_critiques = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *args, **kwargs):
        super().__init__(tokenizer, *args, **kwargs)
        prefix = self.encode_prefix("x", "x")
        turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
        more_ids = self.encode_prefix(turns, "x").input_ids
        if more_ids.count(self.end_token_id) != prefix.input_ids.count(self.end_token_id) + 2:
            raise ValueError(
                "`format` 'reference' needs a chat template that ends user and assistant turns with the same token; this one "
                "does not."
            )
        # A template that trims turns also removes the critique prompt's trailing space, so training adds the space again
        turn = self._apply_template(Conversation([{"role": "user", "content": "x "}]))
        self._trims = f"x {self.end_token}" not in turn
        # Read `init_kwargs`, not the tokenizer's attribute: transformers 4 cleaned up spaces by default unless the tokenizer's
        # config disabled it
        self._cleans_up = tokenizer.init_kwargs.get("clean_up_tokenization_spaces", True)

    def complete(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """Append a critique directly after its prompt, for scoring, and tokenise both again. See [`CritiqueFormat.complete`]."""
        if not self.critique or critique is None:
            return super().complete(prefix, critique)
        if isinstance(critique, str):
            return self._tokenize(prefix, *self._text_and_reference(critique.strip()))
        ids = self._checked_ids(critique)
        groups = [
            (is_control, self._decode_all(list(group)))
            for is_control, group in groupby(ids, key=self._controls.token_ids.__contains__)
        ]
        text = self.decode(ids).translate(ESCAPED)
        if self._controls.ids_in(self._encode(text)) != self._controls.ids_in(ids):
            # Ordinary tokens can spell a control token in the decoded text. Keep only the control tokens that the model
            # itself wrote
            text = "".join(
                piece if is_control else self._controls.plain(piece) for is_control, piece in groups
            ).strip()
        reference = "".join(piece if is_control or not piece.strip() else "x" for is_control, piece in groups)
        return self._tokenize(prefix, text, reference.strip())

    def complete_for_training(self, prefix: EncodedPrefix, critique: str | list[int] | None = None) -> EncodedCritique:
        """
        Append a critique for training, separated from its prompt by one space. Ids are decoded first, and nothing in their
        text becomes a control token. `prefix_length` counts the ids up to and including the token that opens the critique
        turn, because the reference trains on the entire turn, including its fixed prompt.
        """
        if not self.critique or critique is None:
            return super().complete(prefix, critique)
        text = critique if isinstance(critique, str) else self.decode(self._checked_ids(critique))
        if self._trims:
            text = (self.critique_prompt[len(self.critique_prompt.rstrip()) :] + text).rstrip()
        encoded = self._tokenize(prefix, *self._text_and_reference(text))
        ids = encoded.input_ids
        ends = [index for index, token_id in enumerate(ids) if token_id == self.end_token_id]
        opening = next(index for index in range(ends[-2] + 1, len(ids)) if ids[index] in self._controls.token_ids)
        return EncodedCritique(ids, opening + 1, prefix.response_changed)

    def truncate_end(self, encoded: EncodedCritique, max_length: int) -> EncodedCritique:
        """
        Truncate a sequence as the reference does in training: on the right, with the tokenizer's end-of-sequence token in
        place of the last token that fits. The last token is also replaced if a sequence has exactly `max_length` tokens;
        a shorter sequence is returned unchanged.
        """
        if len(encoded.input_ids) < max_length:
            return encoded
        ids = (*encoded.input_ids[: max_length - 1], cast(int, self.tokenizer.eos_token_id))
        return EncodedCritique(ids, min(encoded.prefix_length, max_length), encoded.response_changed)

    def decode(self, critique_ids: list[int]) -> str:
        """Decode generated critique ids with special tokens, remove spaces before punctuation, and strip the text."""
        return self._decode_all(critique_ids).strip()

    def stop_ids(self, config: CLoudConfig, generation_config: GenerationConfig | None = None) -> list[int]:
        """Return the tokenizer's end-of-sequence id, at which the reference ends a critique."""
        eos = cast(int | None, self.tokenizer.eos_token_id)
        return [] if eos is None or eos == self.end_token_id else [eos]

    def banned_ids(self, config: CLoudConfig) -> list[int]:
        """Return no ids: the reference bans nothing."""
        return []

    def _render_turns(self, conversation):
        if not self.critique:
            return super()._render_turns(conversation)
        turn = {"role": "user", "content": self.critique_prompt}
        text = self._apply_template(replace(conversation, messages=[*conversation.messages, turn]))
        return text[: text.rindex(self.end_token)]

    def _decode_all(self, ids: list[int]) -> str:
        text = cast(str, self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for spaced, clean in _SPACES_CLEANED_UP.items() if self._cleans_up else ():
            text = text.replace(spaced, clean)
        return text

    def _text_and_reference(self, text: str) -> tuple[str, str]:
        """Return the text, cut where it spells a control token, and a harmless text that shows which control tokens to expect."""
        return self._controls.plain(self._check_text(text, "critique")), "x" if text.strip() else text

    def _tokenize(self, prefix: EncodedPrefix, text: str, reference: str) -> EncodedCritique:
        ids = self._continue(prefix, f"{text}{self.end_token}", f"{reference}{self.end_token}")
        if ids is None:
            raise ValueError(f"The critique would be read as control tokens: {unescape(text)!r:.200}")
        # The critique starts at the first id that differs: its first characters may have merged with the prompt's last
        start = next(
            (index for index, pair in enumerate(zip(ids, prefix.input_ids, strict=False)) if pair[0] != pair[1]),
            min(len(prefix.input_ids), len(ids) - 1),
        )
        return EncodedCritique(tuple(ids), start, prefix.response_changed)


def _remembered(memory: dict[str, _T], key: str, make: Callable[[], _T]) -> _T:
    """Return the cached value of a key, or compute it. Values of long keys are not cached."""
    if key in memory:
        return memory[key]
    value = make()
    if len(memory) >= _MOST_SHAPES:
        memory.clear()
    if len(key) <= _LONGEST_SHAPE:
        memory[key] = value
    return value


def format_class(name: str) -> type[CritiqueFormat]:
    """Return the class for a value of `CLoudConfig.format`. Raises `ValueError` for other names."""
    classes = {kind.name: kind for kind in (CritiqueFormat, ReferenceFormat)}
    if name not in classes:
        raise ValueError(f"`format` is {name!r}; use {' or '.join(map(repr, classes))}.")
    return classes[name]
