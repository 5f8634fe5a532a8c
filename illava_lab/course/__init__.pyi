from .session import feedback as feedback
from .session import set_up as set_up
from .teaching import Prediction as Prediction
from .teaching import Question as Question
from .teaching import Quiz as Quiz
