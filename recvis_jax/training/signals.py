"""SIGTERM and Ctrl-C: a run saves and ends after the current step."""

import os
import signal
import sys
import threading
from typing import Any

from recvis_jax.training import lock, processes


class StopSignal:
    """Catches SIGTERM and Ctrl-C inside its `with` block; calling it tells whether one came. A second Ctrl-C exits.

    Outside the main thread it catches nothing. With several processes, each calls it with the number of every step, and
    all are told to stop at the same step.

    Attributes:
      name: what came: "SIGTERM", "Ctrl-C", or an empty string.
    """

    def __init__(self):
        self.name = ""
        self._came = threading.Event()
        self._before: dict[int, Any] = {}

    def __call__(self, step: int | None = None) -> bool:
        if processes.several() and step is not None and processes.agreed_to_stop(step):
            self.name = self.name or "SIGTERM"
            self._came.set()
        return self._came.is_set()

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        # With several processes, JAX's own handler catches SIGTERM and tells the others.
        numbers = [signal.SIGINT] if processes.several() else [signal.SIGINT, signal.SIGTERM]
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored for a program in the background
                self._before[number] = signal.signal(number, lambda number, _: self._note(number))
        # A thread listens too: the main thread may be in a long computation, which a second Ctrl-C must end.
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._wakeup = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True, name="signals").start()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before or hasattr(self, "_pipe"):
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._pipe)

    def _note(self, number: int) -> None:
        if not processes.several():  # else all processes agree on a step
            self.name = self.name or ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")
            self._came.set()

    def _listen(self, pipe: int) -> None:
        interrupts = 0
        with os.fdopen(pipe, "rb", buffering=0) as file:
            while received := file.read(1):
                number = received[0]
                if number not in self._before:
                    continue
                interrupts += number == signal.SIGINT
                if interrupts > 1:
                    _end_at_once()
                self._note(number)
                if number == signal.SIGINT:
                    if processes.several():
                        self.name = "Ctrl-C"
                        os.kill(os.getpid(), signal.SIGTERM)  # caught by JAX
                    print("Ctrl-C: saving after this step; press again to exit at once.", file=sys.stderr, flush=True)


def _end_at_once() -> None:
    """Ends the process after a second Ctrl-C; complete checkpoints stay."""
    lock.release_all()
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")  # the cursor, which the progress bar hides
    print("interrupted: nothing more was saved; the same command continues from the last checkpoint", file=sys.stderr)
    sys.stderr.flush()
    os._exit(130)
