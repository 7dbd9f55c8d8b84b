// Scenarios that find out how long things take: nothing else runs beside them. Those that leave the cores idle run together.
import { testAll } from './cut.ts';
import { SCENARIOS } from './scenarios.ts';

const timed = SCENARIOS.filter((scenario) => scenario.isTimed === true);
testAll(
  timed.filter((scenario) => scenario.isQuiet === true),
  { concurrent: true },
);
testAll(timed.filter((scenario) => scenario.isQuiet !== true));
