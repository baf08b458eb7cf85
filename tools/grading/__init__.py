"""Grading: the judge runs in the teacher's process, the student's code in one without rights."""
