"""What the Trainer-based notebooks share: precision flags and a quiet progress line."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.profiles import Profile


def precision_arguments(profile: Profile) -> dict[str, bool]:
    """What TrainingArguments must be told about the device and precision of a profile."""
    return {
        "use_cpu": profile.device == "cpu",
        "fp16": profile.precision == "fp16",
        "bf16": profile.precision == "bf16",
        "dataloader_pin_memory": profile.device == "cuda",
    }


class EpochLines(TrainerCallback):
    """One line an epoch instead of a progress bar: readable live and in a committed notebook."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        """Print the epoch, the latest training loss and the evaluation's scores."""
        trained = [entry["loss"] for entry in state.log_history if "loss" in entry]
        timings = ("runtime", "samples_per_second", "steps_per_second")
        scores = "  ".join(
            f"{name.removeprefix('eval_')} {value:.3f}"
            for name, value in (metrics or {}).items()
            if name != "epoch" and not name.endswith(timings)
        )
        training = f"training loss {trained[-1]:.3f}  " if trained else ""
        print(
            f"epoch {state.epoch:.0f}/{args.num_train_epochs:.0f}  {training}validation: {scores}"
        )
