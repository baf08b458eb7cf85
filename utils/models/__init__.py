"""The models: loading, adapters, answers and their log-probabilities, stand-ins for the lab."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "adapters": [
            "BASE_NOTE",
            "CHAT_WISH",
            "ModelError",
            "PROJECTIONS",
            "base_documents",
            "chat_model",
            "chat_source",
            "chat_tokenizer",
            "check_base",
            "content_hash",
            "four_bits",
            "labelled_model",
            "labelled_source",
            "labelled_start",
            "load_adapter",
            "lora",
            "save_adapter",
            "speaking_as",
        ],
        "chat": [
            "TEMPLATE",
            "answer_ids",
            "answer_logps",
            "asked",
            "fitting",
            "preference_rows",
            "prompt_ids",
            "reply",
            "sampled_kl",
            "sft_rows",
        ],
        "language": ["STAND_IN", "language_model"],
        "logprobs": ["padded"],
        "memory": ["release"],
        "precision": ["precision_arguments", "tolerance"],
        "sentiment": [
            "SentimentReward",
            "WordDropout",
            "classify",
            "encode",
            "negative_reward",
            "sentiment_classifier",
        ],
    },
)
