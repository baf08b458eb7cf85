"""Additions to TRL for SFT, DPO and ORPO: resuming, low memory, packing, shared prompts, T5."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "orpo": ["answer_means"],
        "packing": ["PackedSFTTrainer"],
        "seq2seq_dpo": [
            "DPOSettings",
            "Seq2SeqDPOTrainer",
            "answer_logps",
            "collate",
            "disable_dropout",
            "encoder_decoder",
            "tokenise",
        ],
        "shared_prompt": ["SharedPromptDPOTrainer", "joined", "pair_logps"],
        "training": ["EpochLines", "adapt_language_model", "fit", "run", "training_seconds"],
    },
)
