"""From a goal in words and raw files to a plan that was measured on them.

  survey   measures a sample and holds another one back        `survey`
  plan     a planner turns the goal into steps                 `planner`, `rules`, `llm`
  check    operators, parameters, order                        `jdc.prep.check`
  try      the plan runs on the held sample, canaries planted  `jdc.prep.trial`, `.canaries`
  verify   what it did is compared with what the goal asks     `jdc.prep.verify`, `contract`
  repair   rules that drop too much are loosened               `jdc.prep.repair`

What a plan must achieve (`contract`) follows from the goal's words and published defaults, and
is the same whoever plans.
"""
