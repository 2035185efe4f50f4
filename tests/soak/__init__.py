"""The soak: servers and clients in processes of their own, mixed, disturbed and checked for as long as one likes.

``python -m tests.soak --seconds 600 --seed 1234`` (`make soak`). The parent (`soak`) starts children (`child`, which become
what `servers` and `lanes` say), disturbs them (`faults`), and judges what they find (`judge`). The children count on a
`board` that they share, so that what one of them knew when it was killed is not lost.
"""
