"""The shell's grammar, as far as it decides in which place a placeholder stands.

Where sh and bash would read a text differently, or where following it would
take a whole shell, the scanner gives up: a placeholder after that is refused.
"""

import re

from data_pipeline.history.shell_template import (
    CLIENT,
    OPENERS,
    OTHER,
    VARIABLES,
    Command,
    Placeholder,
    Word,
    refuse,
    refuse_word,
)

BLANK = " \t"
ENDS_A_WORD = " \t\n;&|()<>"
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Enough(Exception):
    """The rest of the template need not be understood."""


class Scanner:
    """Reads a whole template once: `commands` and `text` (for the shell) are there afterwards."""

    def __init__(self, items: list):
        self.items = items
        self.i = 0
        self.output = []
        self.commands = []
        self.text = ""
        self._command = Command()
        self._word = Word(1)
        self._outer = []  # the commands and words that wait for a nested (…) to end
        self._inside = []  # where a placeholder may not stand, outermost first
        self._seen = self._piped = self._heredoc = False
        try:
            self._script(None)
        except _Enough:
            pass
        self._end_command()
        self.text = "".join(self.output)

    # Reading

    def _peek(self, ahead: int = 0):
        """The next character, a Placeholder, or "" at the end."""
        i = self.i + ahead
        return self.items[i][0] if i < len(self.items) else ""

    @property
    def _at(self) -> int:
        return self.items[min(self.i, len(self.items) - 1)][1]

    def _take(self, count: int = 1) -> None:
        """Pass characters on to the shell as they are."""
        for _ in range(count):
            c = self._peek()
            if isinstance(c, Placeholder):
                self._refuse_placeholder(c)
            self.output.append(c)
            self.i += 1

    def _refuse_placeholder(self, found: Placeholder) -> None:
        refuse(self._inside[0] if self._inside else "no value can safely stand here", found.at, found.name)

    def _reference(self, form: str) -> None:
        """Turn the placeholder that comes next into a reference."""
        found = self._peek()
        if self._inside:
            self._refuse_placeholder(found)
        self.output.append(form % VARIABLES[found.name])
        self._word.value += CLIENT
        self._word.names.setdefault(found.name, found.at)
        self._seen = True
        self.i += 1

    def _give_up(self, reason: str) -> None:
        """Nothing from here on is certain, which only matters if values come after it or flow into it."""
        for item, at in self.items[self.i :]:
            if isinstance(item, Placeholder):
                refuse(reason, at, item.name)
        if self._piped:
            refuse(f"a value flows by pipe into what cannot be followed: {reason}", self._at)
        for command, word in [*self._outer, (self._command, self._word)]:
            for unfinished in [*command.words, *command.targets, word]:
                if unfinished.client:
                    refuse_word(unfinished, "it shares a command with something that sh and bash read differently")
        self._take(len(self.items) - self.i)
        raise _Enough

    # Commands

    def _script(self, closer: str | None) -> None:
        """Commands up to `closer`, which is left to the caller, or to the end."""
        opened = self._at
        while (c := self._peek()) != closer:
            if c == "":
                if closer is None:
                    return
                refuse(f"a ( without its {closer}", opened)
            elif isinstance(c, str) and c in BLANK:
                self._take()
            elif c == "\\" and self._peek(1) == "\n":
                self._continued_line()
            elif c == "\n":
                self._end_command()
                if self._heredoc:
                    self._give_up("it comes after the start of a heredoc, whose text is expanded by rules of its own")
                self._take()
            elif c == "#":
                self._comment()
            elif isinstance(c, str) and c in ";&|":
                self._operator(c)
            elif c == "(":
                self._parenthesis()
            elif c == ")":
                refuse("a ) without its (", self._at)
            elif isinstance(c, str) and c in "<>" and self._peek(1) != "(":
                self._redirection()
            else:
                self._argument()
        if closer:
            self._end_command()

    def _end_command(self) -> None:
        if self._command.words or self._command.targets:
            self.commands.append(self._command)
        self._command = Command(piped=self._piped)

    def _operator(self, c: str) -> None:
        pipe = c == "|" and self._peek(1) != "|"
        self._end_command()
        self._take(1 if pipe or self._peek(1) != c else 2)
        if pipe and self._seen:
            # From the first such pipe on, every command is held to read it.
            self._piped = self._command.piped = True

    def _parenthesis(self) -> None:
        if self._command.words and self._command.words[-1].plain not in OPENERS:
            self._give_up("it comes after a function or an array, which may use its arguments anywhere")
        if self._peek(1) == "(":
            self._give_up("it comes after a ((…)), which sh and bash read differently")
        self._end_command()
        self._take()
        self._script(")")
        self._take()

    def _comment(self) -> None:
        while (c := self._peek()) not in ("\n", ""):
            if isinstance(c, Placeholder):  # a comment does nothing: its text stays
                self.output.append(f"{{{c.name}}}")
                self.i += 1
            else:
                self._take()

    def _redirection(self) -> None:
        operator = ""
        while (c := self._peek()) in ("<", ">") or operator and c in ("&", "|") or operator == "<<" and c == "-":
            operator += c
            self._take()
            if operator[-1] in "&|-":
                break
        while self._peek() in (" ", "\t"):
            self._take()
        if self._peek() == "" or isinstance(self._peek(), str) and self._peek() in ENDS_A_WORD:
            refuse("a redirection without its target", self._at)
        word = self._read_word()
        if operator in ("<<", "<<-"):
            self._heredoc = True
        if word.client and (operator.startswith("<<") or set(word.names) != {"id"}):
            refuse_word(word, "as the target of a redirection it would choose the file; only {id} may stand there")
        self._command.targets.append(word)

    def _argument(self) -> None:
        word = self._read_word()
        if word.plain.isdigit() and self._peek() in ("<", ">"):
            return  # the number of a descriptor: 2>file
        self._command.words.append(word)
        if all(w.plain in OPENERS for w in self._command.words[:-1]):
            if word.plain == "case":
                self._give_up("it comes after a case, whose patterns are not followed here")
            if word.plain == "function":
                self._give_up("it comes after a function, which may use its arguments anywhere")

    # Words

    def _read_word(self) -> Word:
        self._word, outer = Word(self._at), self._word
        while (c := self._peek()) != "":
            if isinstance(c, Placeholder):
                self._reference('"${%s}"')
            elif c in "<>" and self._peek(1) == "(" and not self._word.value:
                self._word.bare_expansion = True
                self._nested("it stands inside a process substitution")
            elif c in ENDS_A_WORD:
                break
            else:
                self._piece(c)
        word, self._word = self._word, outer
        return word

    def _piece(self, c: str) -> None:
        if c == "'":
            self._single_quotes()
        elif c == '"':
            self._double_quotes()
        elif c == "\\":
            self._backslash()
        elif c == "$":
            self._word.bare_expansion = True
            self._dollar(quoted=False)
        elif c == "`":
            self._word.bare_expansion = True
            self._backticks()
        else:
            self._word.value += c
            self._take()

    def _quoted(self) -> None:
        if self._word.quoted_from is None:
            self._word.quoted_from = len(self._word.value)

    def _backslash(self) -> None:
        after = self._peek(1)
        if after == "\n":
            self._continued_line()
        elif after == "":
            refuse("a backslash at the end", self._at)
        elif isinstance(after, Placeholder):
            refuse("it follows a backslash", after.at, after.name)
        else:
            self._quoted()
            self._word.value += after
            self._take(2)

    def _continued_line(self) -> None:
        before = self.items[self.i - 1][0] if self.i else " "
        if before not in (" ", "\t", "\n"):
            self._give_up("it comes after a line continued without a blank before the backslash")
        self._take(2)

    def _single_quotes(self) -> None:
        opened = self._at
        self._quoted()
        self._take()
        while (c := self._peek()) != "'":
            if c == "":
                refuse("a ' without its end", opened)
            if isinstance(c, Placeholder):
                self._reference("'\"${%s}\"'")
            else:
                self._word.value += c
                self._take()
        self._take()

    def _double_quotes(self) -> None:
        opened = self._at
        self._quoted()
        self._take()
        while (c := self._peek()) != '"':
            if c == "":
                refuse('a " without its end', opened)
            if isinstance(c, Placeholder):
                self._reference("${%s}")
            elif c == "$":
                self._dollar(quoted=True)
            elif c == "`":
                self._backticks()
            elif c == "\\" and (isinstance(self._peek(1), Placeholder) or self._peek(1) in ('"', "\\", "$", "`", "\n")):
                self._backslash()
            else:
                self._word.value += c
                self._take()
        self._take()

    # Expansions

    def _dollar(self, quoted: bool) -> None:
        after = self._peek(1)
        if isinstance(after, Placeholder):
            refuse("it follows a $", after.at, after.name)
        elif after == "(" and self._peek(2) == "(":
            self._arithmetic()
        elif after == "[":
            self._give_up("it comes after a $[, which is arithmetic to bash and plain text to sh")
        elif after == "(":
            self._nested("it stands inside $(…), where a shell reads the text again")
        elif after == "{":
            self._braces(quoted)
        elif after == "'" and not quoted:
            self._ansi_quotes()
        elif after == '"' and not quoted:
            self._inside.append('it stands inside $"…", which sh and bash read differently')
            self._take()
            self._double_quotes()
            self._inside.pop()
        else:
            self._variable(quoted)

    def _variable(self, quoted: bool) -> None:
        self._take()
        name = ""
        while (c := self._peek()) != "" and isinstance(c, str) and NAME.fullmatch(name + c):
            name += self._peek()
            self._take()
        if not name and isinstance(c, str) and c != "" and c in "0123456789@*#?$!-":
            name = self._peek()
            self._take()
        if name:
            self._expands(name, quoted)
        else:
            self._word.value += "$"

    def _expands(self, name: str, quoted: bool) -> None:
        """A variable; those that carry a client's value are held to the rules of its placeholder."""
        carries = next((key for key, variable in VARIABLES.items() if variable == name), None)
        if carries and not self._inside:
            if not quoted:
                refuse(f"${name} outside double quotes is split into words; write {{{carries}}}", self._at)
            self._word.value += CLIENT
            self._word.names.setdefault(carries, self._word.at)
            self._seen = True
            return
        self._word.value += OTHER
        if quoted and not self._inside:
            self._word.variables[name] += 1

    def _braces(self, quoted: bool) -> None:
        opened = self._at
        self._inside.append("it stands inside ${…}")
        self._take(2)
        name = ""
        while (c := self._peek()) != "}":
            if c == "":
                refuse("a ${ without its }", opened)
            if isinstance(c, str) and c in "'\"\\`{":
                self._give_up("it comes after a ${…} with quotes or braces in it, which shells read differently")
            if c == "$":
                self._dollar(quoted)
            else:
                name += c if isinstance(c, str) else ""
                self._take()
        self._take()
        self._inside.pop()
        self._expands(name if NAME.fullmatch(name) else "", quoted)

    def _arithmetic(self) -> None:
        opened, depth = self._at, 0
        self._inside.append("it stands inside $((…)), where a shell reads the text again")
        self._take()
        while True:
            c = self._peek()
            if c == "":
                refuse("a $(( without its ))", opened)
            depth += (c == "(") - (c == ")")
            if isinstance(c, str) and c in "'\"\\`$#":
                self._give_up("it comes after a $((…)) with quotes or a $ in it, which shells read differently")
            self._take()
            if not depth:
                break
        self._inside.pop()
        self._word.value += OTHER

    def _nested(self, reason: str) -> None:
        """The two characters that open a `(…)`, and the commands in it."""
        self._outer.append((self._command, self._word))
        self._command, self._word = Command(piped=self._piped), Word(self._at)
        self._inside.append(reason)
        self._take(2)
        self._script(")")
        self._take()
        self._inside.pop()
        self._command, self._word = self._outer.pop()
        self._word.value += OTHER

    def _backticks(self) -> None:
        if self._piped:
            self._give_up("it comes after `…`")
        opened = self._at
        self._inside.append("it stands inside `…`, where a shell reads the text again")
        self._take()
        while (c := self._peek()) != "`":
            if c == "":
                refuse("a ` without its end", opened)
            self._take(2 if c == "\\" and self._peek(1) != "" else 1)
        self._take()
        self._inside.pop()
        self._word.value += OTHER

    def _ansi_quotes(self) -> None:
        opened = self._at
        self._inside.append("it stands inside $'…', which sh and bash read differently")
        self._take(2)
        while (c := self._peek()) != "'":
            if c == "":
                refuse("a $' without its end", opened)
            if c == "\\":
                self._inside.pop()
                self._give_up("it comes after a $'…' with a backslash in it, which sh and bash read differently")
            self._take()
        self._take()
        self._inside.pop()
        self._quoted()
        self._word.value += OTHER
