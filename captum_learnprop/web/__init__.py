"""The page of ``learnprop web``: maps of any model in a browser, computed by `captum_learnprop.explain`.

`offered` has the models that may be chosen and `examples` pictures to begin with; `uploads` reads what a browser sends,
bounded. `visit` is what one visitor looks at, `choices` what can be clicked, `concepts`, `patches`, `learning` and
`verdicts` the work behind the tabs, `drawn` what the browser draws and `lines` the Python that makes the same map. Only
`page` needs Gradio.
"""
