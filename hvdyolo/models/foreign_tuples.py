"""How large the tuples of a pickle are, found out without building them."""

import pickletools
from typing import Any

_GETS = ("GET", "BINGET", "LONG_BINGET")
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


class TupleSizes:
    """Follows the stack of a pickle, on which it keeps sizes in place of values.

    A tuple of a tuple twice, sixty times over, is a few hundred bytes, and as the key of a mapping it would
    be hashed for longer than anyone waits: hashing visits its parts, and theirs, each time again.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> int:
        """Take one step; returns how many parts, and parts of parts, the value on top has.

        Raises:
            IndexError: there is less on the stack than the step takes.
        """
        if opcode.name in _GETS:
            self._stack.append(self._memo.get(int(argument), 1))
        elif opcode.name in _PUTS:
            self._memo[int(argument)] = self._stack[-1]
        elif opcode.name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif opcode.name == "DUP":
            self._stack.append(self._stack[-1])
        else:
            taken = self._take(opcode)
            size = 1 + sum(taken) if opcode.name in _TUPLES else 1
            self._stack += [
                size if kind is not pickletools.markobject else None for kind in opcode.stack_after
            ]
        return self._stack[-1] or 1 if self._stack else 1

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[int]:
        """Remove what the step takes; returns the sizes of what lay above its mark, or of all of it."""
        before = opcode.stack_before
        if pickletools.markobject in before or (opcode.name == "POP" and self._stack[-1] is None):
            above = []
            while (size := self._stack.pop()) is not None:
                above.append(size)
            below = before.index(pickletools.markobject) if pickletools.markobject in before else 0
        else:
            above = [self._stack.pop() or 1 for _ in before]
            below = 0
        for _ in range(below):
            self._stack.pop()
        return above
