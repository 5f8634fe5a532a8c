"""The course: what every notebook starts and ends with, predictions, quizzes, and the checks of the exercises."""

from illava_lab.course.session import feedback, set_up
from illava_lab.course.teaching import Prediction, Question, Quiz

__all__ = ["Prediction", "Question", "Quiz", "feedback", "set_up"]
