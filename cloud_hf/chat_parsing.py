"""Parse conversations that were rendered as text, including special tokens, back into messages.

RL trainers decode a policy's prompt and response into a single string and send that string. The reward model needs the
messages in order to render them with its own chat template. To learn how turns begin and end, we render probe
conversations with the policy's template: the text between the contents of two turns is their delimiter.
"""

import re
from itertools import pairwise, product
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


# Turn orders to probe. Most templates allow each of them; an order that a template refuses is skipped
_ORDERS = (
    ("user",),
    ("user", "assistant", "user"),
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "user"),
    ("user", "user", "assistant", "assistant"),
)
_START = "start"

# Placeholder for a date that the template writes, and a pattern for the texts that may appear in its place
_DATE = "99 Xyz 9999"
_ANY_DATE = r"[^\n<]{0,40}"

# Strings that chat templates write around turns, and that ordinary text rarely contains
_MARK = r"<[|｜][^|｜<>\s]{1,40}[|｜]>|<\|turn>|<turn\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
_MARKS, _MARK_AT_END = re.compile(_MARK), re.compile(rf"({_MARK}|</s>)\s*\Z")

# Empty thinking block that templates write before responses without thinking
_NO_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")


class RenderedChats:
    """
    Parser for conversations that were rendered with the chat template of a policy's tokenizer. Raises `ValueError` if the
    tokenizer has no chat template, or if the template does not mark where user and assistant turns
    begin and end.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        is_guess (`bool`, *optional*, defaults to `False`):
            Whether the policy's template may differ from this tokenizer's. If so, system turns are refused: some templates write a default
            system turn, and only the policy's own template can distinguish it from a system turn that was sent.

    Examples:

    ```python
    >>> chats = RenderedChats(tokenizer)
    >>> chats.parse("<|im_start|>user\\nWhat is 2+2?<|im_end|>\\n<|im_start|>assistant\\n4<|im_end|>")
    [{'role': 'user', 'content': 'What is 2+2?'}, {'role': 'assistant', 'content': '4'}]
    ```
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, is_guess: bool = False):
        self.tokenizer = tokenizer
        self.is_guess = is_guess
        if not tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template, so it cannot be used to parse conversations."
            )
        self._added = {token.content for token in tokenizer.added_tokens_decoder.values()}
        outer = {str(token) for token in (tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token) if token}
        self._outer_tokens = re.compile(rf"(?:(?:{_any_of(outer)})\s*)*" if outer else "")
        self._tails: set[str] = set()
        delimiters = self._find_delimiters()
        self._check(delimiters)
        self._starts = {re.compile(_pattern(start)): role for start, role in _longest_first(delimiters.pop(_START))}
        # For each role: a pattern that matches all delimiters that can follow it, and the role that each delimiter opens
        self._next: dict[str, re.Pattern] = {}
        self._opens: dict[str, list[str]] = {}
        for role, followers in delimiters.items():
            ordered = _longest_first(followers)
            self._next[role] = re.compile("|".join(f"({_pattern(text)})" for text, _ in ordered))
            self._opens[role] = [opened for _, opened in ordered]
        answers = [text for text, role in delimiters["user"] if role == "assistant"]
        rests = [(asked, text.removeprefix(asked)) for asked, text in product(answers, answers)]
        self._rests = [(asked, rest) for asked, rest in rests if asked + rest in answers and rest.strip()]
        texts = "".join(text for followers in delimiters.values() for text, _ in followers)
        self._ends = self._find_ends(delimiters, outer)
        self._openers = set(_MARKS.findall(texts)).difference(self._ends)

    def parse(self, text: str, prompt: str | None = None) -> list[dict]:
        """
        Parse a rendered conversation. A BOS token and padding around the conversation are ignored, the end of the last turn
        may be missing, and the template's default system turn and empty thinking blocks are dropped.

        Args:
            prompt (`str`, *optional*):
                Rendered prompt with which `text` starts, up to the response. If it is given, nothing in the response is parsed
                as another turn.

        Returns:
            `list[dict]`: Messages with `role` and `content`. The last one is an empty assistant message if the text ends
            where a response should begin.

        Raises:
            `ValueError`: If the text does not begin like a conversation in this template, if it does not begin with `prompt`, if
                `prompt` does not end where a response begins, or if turn markers from another template are left over.
        """
        if prompt is None:
            *before, last = self._turns(text)
            last["content"] = self._without_end(last["content"])
            self._check_complete(before, last["content"])
            self._refuse([mark for mark in self._openers if mark in last["content"]])
            return self._without_thoughts([*before, last])
        response = self._after_prompt(text, prompt)
        messages = self._turns(prompt)
        if messages[-1]["role"] != "assistant":
            raise ValueError(
                f"The prompt ends with a {messages[-1]['role']} turn: {prompt[-80:]!r}. Render it with "
                "`add_generation_prompt=True`."
            )
        response = self._without_end(self._without_opening(prompt, response))
        self._check_complete(messages, response)
        messages[-1]["content"] += response
        return self._without_thoughts(messages)

    # ----------------------------------------------------------------------------------------------------- parsing

    def _turns(self, text: str) -> list[dict]:
        role, position = self._read_start(text)
        messages = []
        while match := self._next[role].search(text, position):
            messages.append({"role": role, "content": text[position : match.start()]})
            role, position = self._opens[role][(match.lastindex or 1) - 1], match.end()
        if role == "system":
            raise ValueError(f"The text has no user turn in the format of the policy's chat template: {text[:80]!r}.")
        if self.is_guess and any(message["role"] == "system" for message in messages):
            raise ValueError(
                "The text has a system turn, which may be the default one of the policy's chat template. To parse the text, start the "
                "server with `--policy_tokenizer` set to the policy, or to the reward model if both have the same chat template."
            )
        return [*messages, {"role": role, "content": text[position:]}]

    def _read_start(self, text: str) -> tuple[str, int]:
        position = self._outer_length(text)
        for start, role in self._starts.items():
            if match := start.match(text, position):
                return role, match.end()
        expected = " or ".join(repr(start.pattern.replace("\\", "")[-60:]) for start in self._starts)
        raise ValueError(
            f"The text begins with {text[:80]!r}, which is not a conversation in the policy's chat template. Such a "
            f"conversation begins with {expected}."
        )

    def _after_prompt(self, text: str, prompt: str) -> str:
        """Return the text after the prompt. Decoding may have changed the prompt in `text`, so also try the prompt encoded and decoded."""
        start = self._outer_length(text)
        for form in (prompt, self._decoded(prompt)):
            form = form[self._outer_length(form) :]
            if text.startswith(form, start):
                return text[start + len(form) :]
        raise ValueError(f"The text does not start with its prompt: {text[:80]!r} instead of {prompt[:80]!r}.")

    def _without_opening(self, prompt: str, response: str) -> str:
        """Drop the text that the template writes between a generation prompt and a response, if the policy also wrote it."""
        for asked, rest in self._rests:
            if prompt.endswith(asked) and response.startswith(rest):
                return response[len(rest) :]
        return response

    def _check_complete(self, prompt: list[dict], response: str):
        """
        Refuse turn markers that are left over in a prompt, and an unknown turn marker at the end of a response. Both show that the text was
        rendered with another template. (Elsewhere in a response, turn markers are the policy's own text.)
        """
        contents = [message["content"] for message in prompt]
        left = [match.group() for content in contents for match in _MARKS.finditer(content)]
        ends = [match.group(1) for content in [*contents, response] if (match := _MARK_AT_END.search(content))]
        self._refuse(left + [mark for mark in ends if mark not in self._added or mark not in response])

    def _refuse(self, left: list[str]):
        if left:
            raise ValueError(
                f"{left[0]!r} is left over when the turns are parsed with the chat template of {self.tokenizer.name_or_path!r}: "
                "the text was rendered with another template. Parse it with the tokenizer of the policy that wrote it."
            )

    @staticmethod
    def _without_thoughts(messages: list[dict]) -> list[dict]:
        for message in messages:
            if message["role"] == "assistant" and (match := _NO_THOUGHT.match(message["content"])):
                message["content"] = message["content"][match.end() :]
        return messages

    def _outer_length(self, text: str) -> int:
        return cast(re.Match, self._outer_tokens.match(text)).end()  # the pattern also matches the empty string

    def _without_end(self, content: str) -> str:
        # Search backwards, because a regular expression would try again at every token of a long run of end tokens
        end = stripped = len(content)
        while True:
            while stripped and content[stripped - 1].isspace():
                stripped -= 1
            token = next((token for token in self._ends if content.endswith(token, 0, stripped)), None)
            if token is None:
                return content[:end]
            end = stripped = stripped - len(token)

    def _decoded(self, text: str) -> str:
        return cast(str, self.tokenizer.decode(self.tokenizer(text, add_special_tokens=False)["input_ids"]))

    # ----------------------------------------------------------------------------------------------------- probing

    def _find_delimiters(self) -> dict[str, set[tuple[str, str]]]:
        """
        Find the delimiters that can follow each role or begin a text, and the roles that they open. Each delimiter is recorded
        both as the template writes it and as decoding returns it, because some tokenizers change its spaces.
        """
        delimiters: dict[str, set[tuple[str, str]]] = {_START: set(), "user": set(), "assistant": set()}
        for roles in _ORDERS:
            for generation, variables in product((False, True), self._dates()):
                rendered = self._render(roles, generation, variables)
                if rendered is None:
                    continue
                for text in (rendered, self._decoded(rendered)):
                    self._read_probe(delimiters, roles, text, generation)
        return delimiters

    def _read_probe(self, delimiters, roles: tuple[str, ...], text: str, generation: bool):
        slots = [re.escape(_slot(index)) for index in range(len(roles))]
        match = re.fullmatch("(.*)" + "(.*)".join(slots) + "(.*)", text, re.DOTALL)
        if match is None:
            return
        start, *between, tail = match.groups()
        start = start[self._outer_length(start) :]
        delimiters[_START].add((start, roles[0]))
        if roles[-1] == "assistant" and not generation:
            self._tails.add(tail)
        for (role, following), delimiter in zip(pairwise(roles), between, strict=True):
            if role == following == "assistant" and tail.startswith(delimiter):
                continue  # nothing marks the start of this turn, so it looks like the end of the previous one
            delimiters.setdefault(role, set()).add((delimiter, following))
            closes_alike = roles[-1] == "assistant" and not generation and delimiter.startswith(tail)
            if (role, following) == ("assistant", "user") and closes_alike:
                # Some templates write a default system turn; a text without that turn starts with the delimiter that opens a user turn
                delimiters[_START].add((delimiter.removeprefix(tail), "user"))
        if generation and roles[-1] == "user" and tail.strip():
            # A thinking block that the generation prompt opens belongs to the response
            delimiters["user"].add((re.sub(r"<think>\s*$", "", tail), "assistant"))

    def _dates(self) -> list[dict[str, Any]]:
        """
        Return sets of template variables, each of which makes the template write the date placeholder. The first replaces the template's
        clock (`strftime_now`). If the template has date variables, there is a second one, which also sets these.
        """
        clock = {"strftime_now": lambda _: _DATE}
        names = re.findall(r"\b\w*(?:date|today)\w*\b", str(self.tokenizer.chat_template))
        return [clock, {**clock, **dict.fromkeys(names, _DATE)}] if names else [clock]

    def _render(self, roles: tuple[str, ...], generation: bool, variables: dict[str, Any]) -> str | None:
        messages = [{"role": role, "content": _slot(index)} for index, role in enumerate(roles)]
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation, **variables
            )
            return cast(str, text)
        except TemplateError:
            return None

    def _check(self, delimiters: dict[str, set[tuple[str, str]]]):
        """
        Refuse a template that does not mark where user and assistant turns begin and end. If texts with and without a system turn start
        alike, do not parse system turns.
        """
        user_starts = {start for start, role in delimiters[_START] if role == "user"}
        if any(start in user_starts for start, role in delimiters[_START] if role == "system"):
            delimiters[_START] = {(start, role) for start, role in delimiters[_START] if role != "system"}
            del delimiters["system"]
        shown = {(role, following) for role, followers in delimiters.items() for _, following in followers}
        # A system turn may come before the first user turn without a delimiter
        blank = [
            role
            for role, followers in delimiters.items()
            if any(not text.strip() and following != "system" for text, following in followers)
        ]
        if blank or not {(_START, "user"), ("user", "assistant"), ("assistant", "user")} <= shown:
            raise ValueError(
                f"The chat template of {self.tokenizer.name_or_path!r} does not mark where user and assistant turns "
                "begin and end, so conversations rendered with it cannot be parsed."
            )

    def _find_ends(self, delimiters: dict[str, set[tuple[str, str]]], outer: set[str]) -> list[str]:
        """Return the tokens that may end a text: those that close an assistant turn, and EOS and padding after it."""
        added = re.compile(_any_of({content for content in self._added if content.strip()}) or r"(?!)")
        closing = {match.group() for text, _ in delimiters["assistant"] if (match := added.match(text.lstrip()))}
        closing |= {token for tail in self._tails for token in added.findall(tail)}
        return sorted(closing | outer, key=len, reverse=True)


def _longest_first(delimiters: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort delimiters from longest to shortest, so that each is tried before its own prefixes."""
    return sorted(delimiters, key=lambda delimiter: -len(delimiter[0]))


def _slot(index: int) -> str:
    return f"slot{index}x"


def _any_of(texts: set[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))


def _pattern(delimiter: str) -> str:
    return re.escape(delimiter).replace(re.escape(_DATE), _ANY_DATE)
