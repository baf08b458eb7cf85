"""Vietnamese texts: reading and checking them, feedback, pairs, and how pairs are mined."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "attributes": [
            "attribute_pairs",
            "attributes_of",
            "plain_answers",
            "with_attributes",
            "worth",
        ],
        "families": ["systematic"],
        "feedback": ["NEGATIVE", "SENTIMENTS", "TOPICS", "load_feedback"],
        "instructions": ["load_instructions", "one_per_question"],
        "mining": ["Controls", "MiningError", "embed", "mine", "nearest", "report"],
        "pairs": ["load_human_like", "load_preferences", "science_questions", "written"],
        "questions": ["says", "voting_questions"],
        "reading": ["fingerprint", "need"],
        "text": ["duplicate_key", "segment"],
    },
)
