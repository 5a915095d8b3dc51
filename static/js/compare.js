// Two turns compared, or candidates for it: all of it is the server's, but the times are the viewer's.

import { showLocalTimes } from "./times.js";

showLocalTimes();
