"""Tokens and passwords, which must not end up in a message, a log or a traceback, whatever they look like."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

from und3rstand_jax.convert.options import TOKEN_VARIABLES, HubAccess
from und3rstand_jax.support.errors import CheckpointError, UserError
from und3rstand_jax.support.text import printable


@dataclass(frozen=True, repr=False)
class Secrets:
    """The texts that must not be shown, the longest first."""

    texts: tuple[str, ...]

    @classmethod
    def of(cls, access: HubAccess) -> "Secrets":
        """The token that is sent, the others that the client knows, and the password in HF_ENDPOINT."""
        from huggingface_hub import constants

        found = [access.secret, *(os.environ.get(name) for name in TOKEN_VARIABLES)]
        with contextlib.suppress(OSError, ValueError):
            found.append(Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8"))
        credentials = constants.ENDPOINT.partition("://")[2].rpartition("@")[0]
        if credentials:
            # A password may contain characters that end it in a URL: messages then quote pieces of it.
            password = credentials.partition(":")[2]
            found += [credentials, password, unquote(password), *(piece for piece in re.split("[:/@]", password) if len(piece) > 1)]
        texts = {text.strip() for text in found if text is not None and text.strip()}
        texts |= {form(text) for text in texts for form in (quote, lambda text: repr(text)[1:-1])}
        return cls(tuple(sorted(texts, key=lambda text: (-len(text), text))))

    def hide(self, text: str) -> str:
        """The text with *** in place of every secret, and of what looks like one."""
        for secret in self.texts:
            text = text.replace(secret, "***")
        return printable(text, keep="\n")

    def raise_error(self, message: str, cause: BaseException, kind: type[UserError] = CheckpointError) -> NoReturn:
        """Raises an error of class `kind` without secrets; its cause is attached, for --debug, only if no message in it holds one."""
        chain: list[BaseException] = []
        link: BaseException | None = cause
        while link is not None and link not in chain:
            chain.append(link)
            link = link.__cause__ or link.__context__
        clean = all(self.hide(text) == printable(text, keep="\n") for text in map(str, chain))
        clean = clean and not any("://***@" in self.hide(str(link)) for link in chain)
        raise kind(self.hide(message)) from (cause if clean else None)

    @contextlib.contextmanager
    def hidden_in_logs(self) -> Iterator[None]:
        """Removes secrets from what the hub's client and its libraries log inside the block."""

        def hide(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            if self.hide(text) != text:
                record.msg, record.args, record.exc_info = self.hide(text), None, None
            return True

        handlers = [*logging.getLogger("huggingface_hub").handlers, *logging.getLogger().handlers]
        for handler in handlers:
            handler.addFilter(hide)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(hide)
