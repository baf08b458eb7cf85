"""The course's shared package; a notebook enters through `utils.course.start`."""
