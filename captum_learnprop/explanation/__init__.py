"""``captum_learnprop.explain``: any model, any picture, one line; what it gives shows and saves itself.

`explain` puts together what the other files are for: `known_model` what is known of the model, `pictures` and
`framing` how what the user has becomes its input and where in the picture that lies, `asking` what is explained,
`methods` and `treatments` how, `result` and `figure` what comes out.
"""

from captum_learnprop.explanation.explain import explain
from captum_learnprop.explanation.methods import method_names
from captum_learnprop.explanation.result import Cost, Explanation, Explanations, Guess

__all__ = ["Cost", "Explanation", "Explanations", "Guess", "explain", "method_names"]
