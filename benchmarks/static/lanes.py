"""A warp that runs machine instructions: its registers, and the jumps that part its lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.static.expressions import LANES, ZERO
from benchmarks.static.memory import Shared
from benchmarks.static.sass import Instruction
from benchmarks.static.translate import Step

_ALL = np.ones(32, bool)
_NONE = np.zeros(32, bool)


class Code:
    """Instructions and what they do, with the places that jumps lead to."""

    def __init__(self, instructions: list[Instruction], steps: list[Step]) -> None:
        self.instructions, self.steps = instructions, steps
        self.place = {found.address: n for n, found in enumerate(instructions)}


class Warp:
    """32 lanes.

    Attributes:
        at: The instruction to run next, by number; None at the end.
        mask: Lanes in which the present instruction runs.
        active: Lanes that are on.
        copied: Where in shared memory the last copy went.
        local: Registers that are spilled, by address, which is the same in all lanes.
        registers, uniform, predicates, uniform_truths: As ``translate`` takes them.
    """

    def __init__(
        self, code: Code, program: tuple[int, int, int], number: int, shared: Shared, divides: bool
    ) -> None:
        self._code = code
        self.at: int | None = 0
        self.program, self.shared, self.divides = program, shared, divides
        self.threads = LANES + 32 * number
        self.active = self.mask = _ALL
        self.copied = ZERO
        self.local: dict[int, Any] = {}
        self.first = 0
        self.registers: list[Any] = [ZERO] * 256
        self.uniform = [0] * 64
        self.predicates: list[Any] = [_NONE] * 7
        self.uniform_truths = [False] * 8
        self._waiting: list[tuple[int, Any]] = []
        self._joining: dict[str, tuple[int, Any, int]] = {}

    def _guard(self, text: str) -> Any:
        uniform = "U" in text
        name = text.lstrip("!U")
        if name == "PT":
            value: Any = True
        elif uniform:
            value = self.uniform_truths[int(name[1:])]
        else:
            value = self.predicates[int(name[1:])]
        value = np.logical_not(value) if text.startswith("!") else value
        return self.active & value

    def step(self) -> Any:
        """Run one instruction; return the addresses of its lanes that are on, or None."""
        assert self.at is not None
        number = self.at
        instruction, step = self._code.instructions[number], self._code.steps[number]
        everything = True
        mask = self.active
        if instruction.guard:
            mask = self._guard(instruction.guard)
        if mask is not _ALL:
            everything = bool(mask.all())
        self.mask = mask
        self.at = number + 1
        state = self.registers, self.uniform, self.predicates, self.uniform_truths, self
        addresses = None
        if everything or mask.any():
            if step.address is not None:
                addresses = step.address(*state)
                addresses = addresses if everything else addresses[mask]
                if step.copied is not None:
                    self.copied = step.copied(*state)[mask]
                    addresses = self._read(instruction, addresses, mask)
            if step.function is not None:
                if everything:
                    step.function(*state)
                else:
                    self._partly(step, mask, state)
            self._jump(instruction, mask)
        return addresses

    def _read(self, instruction: Instruction, addresses: Any, mask: Any) -> Any:
        """A copy to shared memory has a predicate of its own, without which it writes zeros."""
        name = instruction.operands[-1]
        return addresses if name.endswith("]") else addresses[self._guard(name)[mask]]

    def _partly(self, step: Step, mask: Any, state: tuple[Any, ...]) -> None:
        before = [(n, self.registers[n]) for n in step.registers]
        held = [(n, self.predicates[n]) for n in step.predicates]
        step.function(*state)  # type: ignore[misc]
        for n, old in before:
            self.registers[n] = np.where(mask, self.registers[n], old)
        for n, old in held:
            self.predicates[n] = np.where(mask, self.predicates[n], old)

    def _turn(self, lanes: Any) -> None:
        self.active = _ALL if lanes.all() else lanes
        self.first = int(np.argmax(lanes))

    def _resume(self) -> None:
        """Go on with lanes that wait elsewhere, or for those that ended; without any, end."""
        joined = [name for name, (_, lanes, _) in self._joining.items() if lanes.any()]
        if self._waiting:
            self.at, lanes = self._waiting.pop()
            self._turn(lanes)
        elif joined:
            _, lanes, self.at = self._joining.pop(joined[-1])
            self._turn(lanes)
        else:
            self.at = None

    def _jump(self, instruction: Instruction, mask: Any) -> None:
        base = instruction.base
        if base == "BRA":
            if ".DIV" in instruction.opcode:
                return
            condition = instruction.operands[0]
            taken = mask
            if condition.lstrip("!U")[0] == "P" and len(instruction.operands) > 1:
                taken = mask & self._guard(condition)
            if not taken.any():
                return
            target = self._code.place[instruction.target or 0]
            left = self.active & ~taken
            if left.any():
                self._waiting.append((self.at or 0, left))
                self._turn(taken)
            self.at = target
        elif base == "EXIT":
            left = self.active & ~mask
            if left.any():
                self._turn(left)
            else:
                self._resume()
        elif base == "BSSY":
            self._joining[instruction.operands[0]] = len(self._waiting), _NONE, 0
        elif base == "BSYNC":
            depth, arrived, _ = self._joining.pop(instruction.operands[0])
            arrived = arrived | self.active
            if len(self._waiting) > depth:
                self._joining[instruction.operands[0]] = depth, arrived, self.at or 0
                self._resume()
            else:
                self._turn(arrived)
        elif base == "CALL":
            self.at = self._code.place[instruction.target or 0]
        elif base == "RET":
            register = int(instruction.operands[0].split()[0][1:])
            self.at = self._code.place[int(self.registers[register][self.first])]
