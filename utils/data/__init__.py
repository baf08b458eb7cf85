"""Vietnamese texts: reading and checking them, feedback, pairs, and how pairs are mined."""

from utils.door import door

__getattr__, __all__ = door(
    __name__,
    {
        "families": ["systematic"],
        "feedback": ["NEGATIVE", "SENTIMENTS", "TOPICS", "load_feedback"],
        "instructions": ["load_instructions"],
        "mining": ["Controls", "MiningError", "embed", "mine", "nearest", "report"],
        "pairs": ["hand_written", "load_human_like", "load_preferences", "science_questions"],
        "questions": ["says", "voting_questions"],
        "reading": ["fingerprint", "need"],
        "text": ["duplicate_key", "segment"],
    },
)
