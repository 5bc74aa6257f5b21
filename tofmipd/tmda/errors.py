"""What can be wrong with the files of a user."""

from __future__ import annotations

import re

# The directories of an absolute path within a text.
_DIRECTORIES = re.compile(r"(?<![\w.~])/(?:[^\s/'\"]+/)*")


class UserFileError(Exception):
    """A file below the user's TMDA directory cannot be used as it stands.

    ``path`` is as the user would write it, ``line`` is 1-based or 0 where no line is to blame,
    ``problem`` says what is wrong and, where that is not plain, what would be right.
    """

    def __init__(self, path: str, line: int, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path = path
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.problem}"

    def brief(self, directory: str) -> str:
        """The same in few words, with the path relative to ``directory`` and never absolute."""
        path = self.path
        if path.startswith(directory + "/"):
            path = path[len(directory) + 1 :]
        path = path.rsplit("/", 1)[-1] if path.startswith("/") else path
        where = f"{path} line {self.line}" if self.line else path
        return f"{where}: {_DIRECTORIES.sub('', self.problem)}"


class ConfigError(UserFileError):
    """The configuration, or a value in it."""


class MissingConfig(ConfigError):
    """The user has no configuration file at all."""


class KeyFileError(UserFileError):
    """The key file: missing, of a wrong mode, or not hexadecimal."""


class FilterError(UserFileError):
    """The outgoing filter: one error of it, or several.

    ``others`` are the errors after the first one, in the order of their lines.
    """

    def __init__(
        self, path: str, line: int, problem: str, others: tuple[FilterError, ...] = ()
    ) -> None:
        super().__init__(path, line, problem)
        self.others = others

    def __str__(self) -> str:
        return "; ".join([super().__str__(), *(str(error) for error in self.others)])


class MessageError(Exception):
    """The message asks for what it cannot have; ``field`` is the name of the field that does."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class TagError(Exception):
    """An address cannot be made or checked as asked; ``str()`` says why."""


class SettingError(TagError):
    """The same, because of the setting ``name``."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
