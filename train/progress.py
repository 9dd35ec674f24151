"""What a person sees while a run goes on: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

from jaxgpt.train.distributed import is_first


class Progress:
    """Counts steps and tokens, and shows the loss, the speed and the time that is left."""

    def __init__(self, start: int, steps: int, tokens_per_step: int):
        self._steps, self._tokens_per_step = steps, tokens_per_step
        self._terminal = sys.stderr.isatty() and is_first()
        self._bar = tqdm(
            total=steps, initial=start, unit="step", disable=not self._terminal, dynamic_ncols=True, smoothing=0.1
        )
        self._eval_loss = float("nan")
        self._marked, self._step, self._paused = time.perf_counter(), start, 0.0

    def advance(self, loss: float) -> None:
        """One step was made."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, eval loss {self._eval_loss:.3f}", refresh=False)
        self._bar.update()

    def pause(self) -> None:
        """What follows is no training, and not counted as such."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Training goes on."""
        self._marked += time.perf_counter() - self._paused

    def mark(self, step: int) -> float:
        """Training tokens per second since the last mark."""
        now = time.perf_counter()
        speed = (step - self._step) * self._tokens_per_step / max(now - self._marked, 1e-9)
        self._marked, self._step = now, step
        return speed

    def logged(self, step: int, loss: float, eval_loss: float | None, speed: float) -> None:
        """A line of metrics was written: in a log it is shown; a terminal has the bar, and gets evaluations only."""
        if eval_loss is not None:
            self._eval_loss = eval_loss
        if not self._terminal or eval_loss is not None:
            left = (self._steps - step) * self._tokens_per_step / max(speed, 1e-9)
            evaluated = "" if eval_loss is None else f"  eval loss {eval_loss:.4f}"
            line = f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {loss:.4f}{evaluated}"
            self.say(f"{line}  {speed:,.0f} tokens/s  {left:.0f} s left")

    def say(self, text: str) -> None:
        """A line of its own."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
