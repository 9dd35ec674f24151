"""The progress of a run: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from jaxgpt.convert.command_line.console import terminal_width, wrapped
from jaxgpt.convert.command_line.process import is_interactive
from jaxgpt.convert.errors import escaped
from jaxgpt.training.distributed import is_first


class ProgressBar:
    """Counts steps and tokens, and shows the loss, the speed and the time that is left.

    Args:
        start: steps that are made.
        evaluated: the newest evaluation: its step and its loss.
    """

    def __init__(self, start: int, n_steps: int, tokens_per_step: int, evaluated: tuple[int, float]):
        self._n_steps, self._tokens_per_step = n_steps, tokens_per_step
        self._is_terminal = (sys.stderr.isatty() or is_interactive()) and is_first()
        self._bar = tqdm(
            total=n_steps, initial=start, unit="step", disable=not self._is_terminal, dynamic_ncols=True, smoothing=0.1
        )
        self._evaluated, self._loss = evaluated, float("nan")
        self._since, self._step, self._paused = time.perf_counter(), start, 0.0

    def advance(self, loss: float) -> None:
        """Count one step."""
        self._loss = loss
        self._show()
        self._bar.update()

    def evaluated(self, step: int, loss: float) -> None:
        """Show an evaluation from now on."""
        self._evaluated = step, loss
        self._show()

    def _show(self) -> None:
        step, eval_loss = self._evaluated
        training = "" if self._loss != self._loss else f"loss {self._loss:.3f}, "
        self._bar.set_postfix_str(f"{training}held-out loss {eval_loss:.3f} at step {step}", refresh=False)

    def pause(self) -> None:
        """Leave out of the speed what follows, which is no training."""
        self._paused = time.perf_counter()

    def go_on(self) -> None:
        """Count time as training again."""
        self._since += time.perf_counter() - self._paused

    def speed(self, step: int) -> float:
        """Return the training tokens per second since the last call."""
        now = time.perf_counter()
        speed = (step - self._step) * self._tokens_per_step / max(now - self._since, 1e-9)
        self._since, self._step = now, step
        return speed

    def line(self, step: int, loss: float, eval_loss: float | None, speed: float, metrics: Mapping[str, float]) -> None:
        """Print a line of metrics: all of them in a log; on a terminal, which has the bar, only evaluations."""
        averaged, accuracy = metrics.get("ema_eval_loss"), metrics.get("eval_reward_accuracy")
        if not self._is_terminal or eval_loss is not None:
            seconds_left = (self._n_steps - step) * self._tokens_per_step / max(speed, 1e-9)
            evaluated = "" if eval_loss is None else f"  held-out loss {eval_loss:.4f}"
            evaluated += "" if averaged is None else f", {averaged:.4f} with averaged weights"
            evaluated += "" if accuracy is None else f", {accuracy:.0%} preferred"
            line = f"step {step:>{len(str(self._n_steps))}}/{self._n_steps}  loss {loss:.4f}{evaluated}"
            self.say(f"{line}  {speed:,.0f} tokens/s  {seconds_left:.0f} s left")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        tqdm.write(wrapped(escaped(text), terminal_width()), file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
