"""The commands of README.md and docs/*.md, run as they stand; mirrors no room of dsvid.

`commands` reads them from the code blocks. `reader` makes the folder of a reader who has everything that they name: a
clone, lists, videos, data sets, published weights, runs. `tables` says what is made smaller so that it fits two cores,
and what is not run here and why. `running` runs one command and looks for what it was to write.
"""
